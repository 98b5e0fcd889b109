// The live feed: one WebSocket a tab; a snapshot, then patches with sequence numbers.
import { get } from './api.js';
import { batch } from './lib.js';
import { addEvents, connection, events, forget, live, session, trouble } from './store.js';

const SESSION_ENDED = 4401;
const FIRST_PAUSE_MS = 300;
const LONGEST_PAUSE_MS = 5000;
const ACTIVE_EVERY_MS = 20000;
const MISSED_EVENTS = 500;

/** @type {WebSocket | null} */
let socket = null;
let pauseMs = FIRST_PAUSE_MS;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let retry;
let toldActiveAt = 0;

/**
 * A value with a JSON Merge Patch (RFC 7396) applied; what the patch does not touch stays the same object.
 * @param {any} target
 * @param {any} patch
 * @returns {any}
 */
export function mergePatch(target, patch) {
  if (patch === null || typeof patch !== 'object' || Array.isArray(patch)) return patch;
  const isObject = target !== null && typeof target === 'object' && !Array.isArray(target);
  const merged = isObject ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete merged[name];
    else merged[name] = mergePatch(merged[name], value);
  }
  return merged;
}

/** Opens the feed; it is opened again whenever it breaks, until the session ends. */
export function follow() {
  clearTimeout(retry);
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const opened = new WebSocket(`${scheme}://${location.host}/live`);
  socket = opened;
  opened.onmessage = (message) => {
    if (socket === opened) take(JSON.parse(message.data));
  };
  opened.onclose = (closed) => {
    if (socket !== opened) return;
    socket = null;
    if (closed.code === SESSION_ENDED) {
      endSession();
      return;
    }
    connection.value = live.peek().state ? 'reconnecting' : 'connecting';
    retry = setTimeout(again, pauseMs);
    pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
  };
}

/** A browser does not say why a socket was refused, so the session is asked for first. */
async function again() {
  try {
    const response = await fetch('/session', { credentials: 'same-origin' });
    if (response.ok && !(await response.json()).token) {
      endSession();
      return;
    }
  } catch {
    // The UI's process is away: the socket finds out when it is back.
  }
  if (session.peek()) follow();
}

/** Closes the feed, and forgets what it told. */
export function unfollow() {
  clearTimeout(retry);
  const closing = socket;
  socket = null;
  closing?.close();
  forget();
}

function endSession() {
  unfollow();
  session.value = null;
}

/** Asks for the events that came while the feed was away: a snapshot has none. */
function catchUp() {
  const newest = events.peek()[0]?.id;
  if (newest != null) get(`events?limit=${MISSED_EVENTS}&after=${newest}`).then(addEvents, () => {});
}

/** @param {any} message */
function take(message) {
  switch (message.type) {
    case 'snapshot':
      pauseMs = FIRST_PAUSE_MS;
      if (live.peek().state) catchUp();
      batch(() => {
        live.value = { seq: message.seq, epoch: message.epoch, state: message.state };
        connection.value = 'live';
        trouble.value = '';
      });
      break;
    case 'patch': {
      const before = live.peek();
      if (message.seq <= before.seq) return;
      if (message.seq !== before.seq + 1 || !before.state) {
        socket?.send('{"type":"resync"}');
        return;
      }
      live.value = { seq: message.seq, epoch: before.epoch, state: mergePatch(before.state, message.patch) };
      break;
    }
    case 'event':
      addEvents([message.event]);
      break;
    case 'trouble':
      batch(() => {
        connection.value = 'trouble';
        trouble.value = message.message;
      });
      break;
  }
}

function noteUse() {
  const at = Date.now();
  if (at - toldActiveAt < ACTIVE_EVERY_MS || socket?.readyState !== WebSocket.OPEN) return;
  toldActiveAt = at;
  socket.send('{"type":"active"}');
}

for (const kind of ['pointerdown', 'keydown']) addEventListener(kind, noteUse, { passive: true });
