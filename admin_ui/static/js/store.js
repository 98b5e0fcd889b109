// What the pages share: the live state, the session, the clock, messages.
import { batch, computed, signal } from './lib.js';

/** @typedef {{seq: number, epoch: string, state: any}} Live */

/** The server's state at one sequence number. @type {import('./lib.js').Signal<Live>} */
export const live = signal({ seq: 0, epoch: '', state: null });

/** What is wrong with the feed: nothing, this page's own socket, or the way from there to the server. */
export const connection = signal(/** @type {'connecting' | 'live' | 'reconnecting' | 'trouble'} */ ('connecting'));
export const trouble = signal('');

/** Who is logged in; null if nobody is, undefined until it is known. */
export const session = signal(/** @type {{token: string, server: string} | null | undefined} */ (undefined));

/** The last events, newest first. */
export const events = signal(/** @type {any[]} */ ([]));
const MAX_EVENTS = 2000;

/** Unix seconds, once a second. */
export const now = signal(Date.now() / 1000);
setInterval(() => {
  if (!document.hidden) now.value = Date.now() / 1000;
}, 1000);

const NOTHING = Object.freeze({});
/** @param {string} name @returns {import('./lib.js').ReadonlySignal<Record<string, any>>} */
const slice = (name) => computed(() => live.value.state?.[name] ?? NOTHING);

export const server = slice('server');
export const devices = slice('devices');
export const host = slice('host');
export const workers = slice('workers');
export const deployments = slice('deployments');
export const queues = slice('queues');
export const registrations = slice('registrations');
export const figures = slice('figures');
export const attainment = slice('attainment');
export const alerts = slice('alerts');
export const isKnown = computed(() => live.value.state !== null);

/**
 * Adds events, whichever way they came; each counts once.
 * @param {any[]} found
 */
export function addEvents(found) {
  const byId = new Map(events.peek().map((each) => [each.id, each]));
  let isNew = false;
  for (const each of found) {
    if (!byId.has(each.id)) {
      byId.set(each.id, each);
      isNew = true;
    }
  }
  if (isNew) events.value = [...byId.values()].sort((a, b) => b.id - a.id).slice(0, MAX_EVENTS);
}

/** @typedef {{id: number, kind: 'good' | 'bad' | 'plain', text: string}} Toast */
export const toasts = signal(/** @type {Toast[]} */ ([]));
let toastId = 0;

/**
 * Says something for a while. What went wrong stays until it is closed.
 * @param {string} text
 * @param {Toast['kind']} [kind]
 */
export function say(text, kind = 'good') {
  const id = ++toastId;
  toasts.value = [...toasts.value.slice(-3), { id, kind, text }];
  if (kind !== 'bad') setTimeout(() => unsay(id), 4000);
}

/** @param {number} id */
export function unsay(id) {
  toasts.value = toasts.value.filter((each) => each.id !== id);
}

/** Forgets what only somebody who is logged in may see. */
export function forget() {
  batch(() => {
    live.value = { seq: 0, epoch: '', state: null };
    events.value = [];
    connection.value = 'connecting';
    trouble.value = '';
  });
}
