// Where models were over time, worked out from events.
import { html } from '../lib.js';
import { clockTime, unix } from '../format.js';

/** The residency that an event leads to. */
const AFTER = /** @type {Record<string, string>} */ ({
  load: 'loading', wake: 'waking', ready: 'resident', resume: 'resident', drain: 'draining', evict: 'warm', sleep: 'warm', unload: 'cold', failure: 'failed',
});
export const CHANGES = Object.keys(AFTER);

/** @typedef {{from: number, to: number, state: string}} Span */

/**
 * Spans of one deployment's residency between two times.
 * @param {any[]} changes - its events, oldest first
 * @param {{residency: string, since?: number} | undefined} now - what the live state says of it
 * @param {number} from
 * @param {number} to
 * @returns {Span[]}
 */
export function spans(changes, now, from, to) {
  /** @type {{at: number, state: string}[]} */
  const steps = changes.map((each) => ({ at: unix(each.at), state: AFTER[each.kind] }));
  const last = steps.at(-1);
  // The state is what is; where the last event does not lead to it, it began when it says so.
  if (now && last?.state !== now.residency) {
    const began = now.since ?? last?.at ?? from;
    while (steps.length && steps[steps.length - 1].at > began) steps.pop();
    steps.push({ at: began, state: now.residency });
  }
  /** @type {Span[]} */
  const found = [];
  steps.forEach((step, index) => {
    const start = Math.max(from, step.at);
    const end = Math.min(to, steps[index + 1]?.at ?? to);
    if (end > start) found.push({ from: start, to: end, state: step.state });
  });
  return found;
}

const STEPS_S = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

/** Times at which the axis is marked. @param {number} from @param {number} to */
function marks(from, to) {
  const step = STEPS_S.find((each) => (to - from) / each <= 6) ?? 86400;
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(at);
  return found;
}

/**
 * @param {{lanes: {name: string, label: any, spans: Span[], changes: any[]}[], from: number, to: number, chosen: number | null,
 *   onChoose: (event: any) => void}} props
 */
export function Timeline({ lanes, from, to, chosen, onChoose }) {
  const place = (/** @type {number} */ at) => `${(((at - from) / (to - from)) * 100).toFixed(3)}%`;
  const move = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    const target = /** @type {HTMLElement} */ (event.target);
    const all = [...(target.closest('.track')?.querySelectorAll('.change') ?? [])];
    const next = /** @type {HTMLElement | undefined} */ (all[all.indexOf(target) + (event.key === 'ArrowRight' ? 1 : -1)]);
    if (next) {
      next.focus();
      event.preventDefault();
    }
  };
  return html`<div class="lanes" onKeyDown=${move}>
    ${lanes.map((lane) => html`<div class="lane" key=${lane.name}>
      <div class="lane-name" title=${lane.name}>${lane.label}</div>
      <div class="track" role="group" aria-label=${`Changes of ${lane.name}`}>
        ${lane.spans.map((each) => html`<i key=${`${each.from} ${each.state}`} class=${`span ${each.state}`} title=${`${each.state} from ${clockTime(each.from)}`} style=${{ left: place(each.from), width: `${((each.to - each.from) / (to - from)) * 100}%` }}></i>`)}
        ${lane.changes.map((each) => html`<button key=${each.id} class="change" style=${{ left: place(unix(each.at)) }} aria-pressed=${each.id === chosen}
          aria-label=${`${clockTime(each.at)}: ${lane.name}, ${each.kind}`} title=${`${clockTime(each.at)} ${each.kind}: ${each.reason}`} onClick=${() => onChoose(each)}></button>`)}
      </div>
    </div>`)}
    <div class="axis" aria-hidden="true"><div></div><div>${marks(from, to).map((at) => html`<span key=${at} style=${{ left: place(at) }}>${clockTime(at).slice(0, to - from <= 900 ? 8 : 5)}</span>`)}</div></div>
  </div>`;
}

export const TimelineLegend = () => html`<p class="legend">
  ${['resident', 'waking', 'warm', 'draining', 'cold', 'failed'].map((state) => html`<span key=${state}><i class="span-key"><i class=${`span ${state}`}></i></i>${state === 'waking' ? 'waking, loading' : state}</span>`)}
</p>`;
