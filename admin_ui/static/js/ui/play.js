// Chat and completion with one or two deployments side by side: what the operator's and the visitor's page share.
import { html, useEffect, useRef, useState } from '../lib.js';
import { duration, number } from '../format.js';
import { complete, onFrame } from '../stream.js';
import { Code } from './code.js';
import { Check, Dialog, Field, TextField } from './dialog.js';
import { Badge, Card, Segmented } from './parts.js';

/**
 * @typedef {{role: string, text: string}} Turn
 * @typedef {{model: string, turns: Turn[], running: AbortController | null, error: string, began: number, firstAt: number,
 *   endAt: number, wakeMs: number, wait: any, usage: any, timings: any, finish: string}} Side
 * @typedef {{models: string[], url: (kind: 'chat' | 'text') => string, headers: () => Record<string, string>, more?: any,
 *   about: (model: string) => {residency?: string, reason?: string}, server: string, first: string[]}} Props
 */

const PARAMETERS = { system: '', temperature: '0.7', top_p: '1', max_tokens: '256', seed: '', stop: '' };
const AWAY = new Set(['cold', 'warm', 'waking', 'loading', 'draining']);

/** @param {string} model @returns {Side} */
const fresh = (model) => ({
  model, turns: [], running: null, error: '', began: 0, firstAt: 0, endAt: 0, wakeMs: 0, wait: null, usage: null, timings: null, finish: '',
});

/** The body of a request. @param {string} kind @param {string} model @param {Turn[]} turns @param {typeof PARAMETERS} given */
export function bodyOf(kind, model, turns, given) {
  /** @type {Record<string, any>} */
  const body = { model };
  if (kind === 'chat') {
    const system = given.system.trim() ? [{ role: 'system', content: given.system.trim() }] : [];
    body.messages = [...system, ...turns.map((each) => ({ role: each.role, content: each.text }))];
  } else body.prompt = turns[0]?.text ?? '';
  body.max_tokens = Number(given.max_tokens) || 256;
  body.temperature = Number(given.temperature);
  if (given.top_p !== '1' && given.top_p !== '') body.top_p = Number(given.top_p);
  if (given.seed !== '') body.seed = Number(given.seed);
  if (given.stop !== '') body.stop = [given.stop];
  return body;
}

/** The phases of an answer, in seconds: by the server's own account once it has ended. @param {Side} side @param {number} now */
function phasesOf(side, now) {
  const { timings } = side;
  if (timings) return { queue: timings.queue_s ?? 0, wake: timings.wake_s ?? 0, prefill: timings.prefill_s ?? 0, decode: timings.decode_s ?? 0, ttft: timings.ttft_s };
  if (!side.began) return null;
  const end = side.endAt || now;
  const before = ((side.firstAt || end) - side.began) / 1000;
  const wake = Math.min(before, side.wakeMs / 1000);
  return { queue: 0, wake, prefill: before - wake, decode: side.firstAt ? (end - side.firstAt) / 1000 : 0, ttft: side.firstAt ? before : null };
}

/** Tokens per second so far, of those that the server has counted. @param {Side} side @param {number} now */
function rateOf(side, now) {
  const count = side.usage?.completion_tokens ?? 0;
  const seconds = ((side.endAt || now) - side.firstAt) / 1000;
  return side.firstAt && count > 1 && seconds > 0.2 ? (count - 1) / seconds : null;
}

/** @param {{side: Side, now: number}} props */
function Timings({ side, now }) {
  const found = phasesOf(side, now);
  const parts = found ? /** @type {[string, number][]} */ ([['queue', found.queue], ['wake', found.wake], ['prefill', found.prefill], ['decode', found.decode]]) : [];
  const total = parts.reduce((sum, [, each]) => sum + each, 0);
  const tokens = side.usage?.completion_tokens;
  return html`<div>
    <dl class="phases">
      <div><dt>Cold start</dt><dd>${found && found.wake > 0.0005 ? duration(found.wake) : found ? 'none' : '–'}</dd></div>
      <div><dt>First token</dt><dd data-ttft>${found?.ttft != null ? duration(found.ttft) : side.running ? duration(found ? found.wake + found.prefill : 0) : '–'}</dd></div>
      <div><dt>Tokens/s</dt><dd data-rate>${number(side.timings?.tokens_per_s ?? rateOf(side, now))}</dd></div>
      <div><dt>Tokens</dt><dd>${tokens != null ? `${number(side.usage.prompt_tokens)} + ${number(tokens)}` : '–'}</dd></div>
    </dl>
    <div class="phasebar" role="img" aria-label=${total ? parts.filter(([, each]) => each > 0).map(([name, each]) => `${name} ${duration(each)}`).join(', ') : 'No answer yet'}>
      ${total > 0 && parts.map(([name, each]) => each > 0 && html`<i key=${name} class=${`phase-${name}`} style=${{ width: `${(each / total) * 100}%` }} title=${`${name} ${duration(each)}`}></i>`)}
    </div>
  </div>`;
}

/** What a side says while its first token has not come. @param {Side} side @param {number} now */
function waitText(side, now) {
  const passed = duration((now - side.began) / 1000);
  if (side.wait && AWAY.has(side.wait.residency)) return `${side.wait.residency === 'loading' ? 'Loading' : 'Waking'} ${side.model}, ${passed}${side.wait.reason ? `: ${side.wait.reason}` : ''}`;
  return `Waiting for the first token, ${passed}`;
}

/** @param {{side: Side, title: string, models: string[], about: {residency?: string, reason?: string}, onModel: (model: string) => void, onCode: () => void}} props */
function SideView({ side, title, models, about, onModel, onCode }) {
  const talk = useRef(/** @type {any} */ (null));
  const now = performance.now();
  const last = side.turns.at(-1);
  useEffect(() => {
    const box = talk.current;
    if (box && box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
  });
  return html`<section class="card side" aria-label=${title} data-side=${title}>
    <header>
      <select class="pick" aria-label=${`${title}: model`} value=${side.model} onChange=${(/** @type {any} */ event) => onModel(event.target.value)} disabled=${side.running !== null}>
        ${models.map((each) => html`<option key=${each} value=${each} selected=${each === side.model}>${each}</option>`)}
      </select>
      ${about.residency && html`<${Badge} state=${about.residency} />`}
      <button class="small plain" onClick=${onCode} disabled=${!side.model}>Code</button>
    </header>
    <div class="talk" ref=${talk} tabindex="0" role="log" aria-label=${`${title}: conversation`} aria-busy=${side.running !== null}>
      ${!side.turns.length && html`<p class="faint">${title}. Send something to see its answer, and how long each phase takes.</p>`}
      ${side.turns.map((each, index) => html`<div class=${`turn ${each.role}`} key=${index}><span class="who">${each.role === 'user' ? 'You' : side.model}</span>${each.text.trim() && html`<div class="text">${each.text.trimStart()}</div>`}</div>`)}
      ${side.running && !side.firstAt && html`<p class="warn small" data-waiting>${waitText(side, now)}</p>`}
      ${side.error && html`<p class="error-text" role="alert">${side.error}</p>`}
      ${side.finish === 'stopped' && html`<p class="faint small">Stopped.</p>`}
      ${side.finish === 'length' && last?.text && html`<p class="faint small">Ended at the most tokens that were asked for.</p>`}
    </div>
    <${Timings} side=${side} now=${now} />
  </section>`;
}

/** @param {Props} props */
export function Play({ models, url, headers, more, about, server, first }) {
  const [kind, setKind] = useState(/** @type {'chat' | 'text'} */ ('chat'));
  const [count, setCount] = useState(first.length > 1 ? 2 : 1);
  const [given, setGiven] = useState(PARAMETERS);
  const [text, setText] = useState('');
  const [code, setCode] = useState(/** @type {Side | null} */ (null));
  const [, redraw] = useState(0);
  const sides = useRef(/** @type {Side[]} */ ([fresh(''), fresh('')]));
  const draw = useRef(onFrame(() => redraw((value) => value + 1)));
  const all = sides.current;
  const shown = all.slice(0, count);

  // Each side has a model as soon as there are any, and keeps it while it exists.
  all.forEach((side, index) => {
    if (!models.includes(side.model)) side.model = first[index] && models.includes(first[index]) ? first[index] : (models[index] ?? models[0] ?? '');
  });

  const isRunning = shown.some((each) => each.running);
  useEffect(() => {
    if (!isRunning) return undefined;
    const timer = setInterval(() => draw.current(), 100);
    return () => clearInterval(timer);
  }, [isRunning]);
  useEffect(() => () => sides.current.forEach((each) => each.running?.abort()), []);

  /** @param {Side} side @param {string} prompt */
  const run = async (side, prompt) => {
    const abort = new AbortController();
    const turns = kind === 'chat' ? [...side.turns.filter((each) => each.text), { role: 'user', text: prompt }] : [{ role: 'user', text: prompt }];
    const answer = { role: 'assistant', text: '' };
    Object.assign(side, fresh(side.model), { turns: [...turns, answer], running: abort, began: performance.now() });
    let waitedSince = side.began;
    try {
      const body = { ...bodyOf(kind, side.model, turns, given), stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
      await complete(url(kind), headers(), body, abort.signal, {
        onText: (part) => {
          side.firstAt ||= performance.now();
          answer.text += part;
          draw.current();
        },
        onWait: (progress) => {
          const at = performance.now();
          if (AWAY.has(progress.residency)) side.wakeMs += at - waitedSince;
          waitedSince = at;
          side.wait = progress;
          draw.current();
        },
        onEnd: (end) => {
          if (end.finish_reason) side.finish = end.finish_reason;
          if (end.usage) side.usage = end.usage;
          if (end.timings) side.timings = end.timings;
        },
      });
    } catch (failed) {
      if (abort.signal.aborted) side.finish = 'stopped';
      else side.error = /** @type {Error} */ (failed).message;
    } finally {
      side.endAt = performance.now();
      side.running = null;
      draw.current();
    }
  };
  const send = () => {
    const prompt = text.trim() ? text : '';
    if (!prompt || isRunning) return;
    for (const side of shown) if (side.model) run(side, prompt);
    if (kind === 'chat') setText('');
    redraw((value) => value + 1);
  };
  const stop = () => shown.forEach((each) => each.running?.abort());
  const pair = (/** @type {boolean} */ both) => {
    if (!both) all[1].running?.abort();
    setCount(both ? 2 : 1);
  };
  const clear = () => {
    stop();
    sides.current = all.map((each) => fresh(each.model));
    redraw((value) => value + 1);
  };
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  const set = (/** @type {string} */ name) => (/** @type {string} */ value) => setGiven({ ...given, [name]: value });
  return html`<div class="play">
    <div class="stack">
      <div class="sides">${shown.map((side, index) => html`<${SideView} key=${index} side=${side} title=${count === 1 ? 'Answer' : index ? 'B' : 'A'} models=${models} about=${about(side.model)}
        onModel=${(/** @type {string} */ model) => { Object.assign(side, fresh(model)); redraw((value) => value + 1); }} onCode=${() => setCode(side)} />`)}</div>
      <div class="card composer">
        <${Field} label=${kind === 'chat' ? 'Message' : 'Prompt'} hint="Enter sends, Shift and Enter begins a line.">${(/** @type {string} */ id, /** @type {any} */ attributes) => html`<textarea id=${id} ...${attributes} value=${text} onKeyDown=${onKey} onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>`}<//>
        <div class="row">
          ${isRunning ? html`<button class="primary danger" onClick=${stop}>Stop</button>` : html`<button class="primary" onClick=${send} disabled=${!text.trim() || !shown.some((each) => each.model)}>Send</button>`}
          <button onClick=${clear} disabled=${isRunning || !all.some((each) => each.turns.length)}>Clear</button>
        </div>
      </div>
    </div>
    <${Card} title="Request">
      <div class="stack">
        <${Segmented} label="Kind" value=${kind} choices=${[['chat', 'Chat'], ['text', 'Completion']]} onChange=${(/** @type {any} */ value) => { setKind(value); clear(); }} />
        <${Check} label="Two side by side" checked=${count === 2} onChange=${pair} />
        ${more}
        ${kind === 'chat' && html`<${Field} label="System message">${(/** @type {string} */ id) => html`<textarea id=${id} rows="2" value=${given.system} onInput=${(/** @type {any} */ event) => set('system')(event.target.value)}></textarea>`}<//>`}
        <div class="fields pair">
          <${TextField} label="Most tokens" value=${given.max_tokens} onInput=${set('max_tokens')} inputmode="numeric" />
          <${TextField} label="Temperature" value=${given.temperature} onInput=${set('temperature')} inputmode="decimal" />
          <${TextField} label="Top p" value=${given.top_p} onInput=${set('top_p')} inputmode="decimal" />
          <${TextField} label="Seed" value=${given.seed} onInput=${set('seed')} inputmode="numeric" placeholder="any" />
        </div>
        <${TextField} label="Stop at" value=${given.stop} onInput=${set('stop')} placeholder="nothing" />
      </div>
    <//>
    ${code && html`<${Dialog} title=${`Ask ${code.model} from elsewhere`} onClose=${() => setCode(null)} foot=${html`<button class="primary" onClick=${() => setCode(null)}>Close</button>`}>
      <${Code} kind=${kind} server=${server} body=${bodyOf(kind, code.model, code.turns.length ? code.turns.filter((each) => each.text).slice(0, kind === 'chat' ? -1 : 1) : [{ role: 'user', text: text || 'Hello' }], given)} />
    <//>`}
  </div>`;
}
