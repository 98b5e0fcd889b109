// A device's memory as one bar: as wide as it is promised, as full as it is used.
import { html } from '../lib.js';
import { percent, size } from '../format.js';
import { hue } from './parts.js';

/** The parts of used KV, with their colours. @type {[string, string, string][]} */
export const KV_PARTS = [
  ['in_use_bytes', 'KV in use', '--kv-used'],
  ['cached_bytes', 'KV cached', '--kv-cached'],
  ['parked_bytes', 'KV parked', '--kv-parked'],
  ['unused_bytes', 'KV committed, no token', '--kv-unused'],
];

const ORDER = ['reserve', 'weights', 'kv', 'other', 'free'];

/**
 * A device's segments in the order in which they are shown.
 * @param {Record<string, any>} segments
 * @returns {[string, any][]}
 */
export const ordered = (segments) =>
  Object.entries(segments).sort(([a, x], [b, y]) => ORDER.indexOf(x.kind) - ORDER.indexOf(y.kind) || (a < b ? -1 : 1));

/** @param {any} segment */
export function colourOf(segment) {
  if (segment.kind === 'weights') return `var(--hue-${hue(segment.deployment ?? segment.label)})`;
  if (segment.kind === 'kv') return 'var(--kv-used)';
  if (segment.kind === 'other') return 'var(--other)';
  return segment.kind === 'free' ? 'var(--sunken)' : 'var(--reserve)';
}

/** @type {Record<string, string>} */
const NAMES = { kv: 'KV', reserve: 'Reserve', other: 'Other processes', free: 'Free' };

/** @param {any} segment @returns {string} */
export const nameOf = (segment) => (segment.kind === 'weights' ? (segment.deployment ?? segment.label) : NAMES[segment.kind]);

/** @param {{segment: any, budget: number}} props */
function Segment({ segment, budget }) {
  const promised = segment.promised_bytes;
  if (!promised) return null;
  const parts = segment.kind === 'kv' ? KV_PARTS.map(([key, , colour]) => [segment[key] ?? 0, `var(${colour})`]) : [[segment.used_bytes ?? 0, 'var(--seg)']];
  const used = parts.reduce((sum, [bytes]) => sum + bytes, 0);
  const share = promised / budget;
  return html`<div class=${`seg ${segment.kind}`} style=${{ width: `${share * 100}%`, '--seg': colourOf(segment) }}>
    ${used > 0 && segment.kind !== 'free' && html`<div class="fill" style=${{ width: `${Math.min(1, used / promised) * 100}%` }}>
      ${parts.map(([bytes, background], index) => bytes > 0 && html`<i key=${index} style=${{ width: `${(bytes / used) * 100}%`, background }}></i>`)}
    </div>`}
    ${share > 0.045 && html`<span class="name">${nameOf(segment)}</span>`}
  </div>`;
}

/** @param {{name: string, device: any}} props */
export function MemoryBar({ name, device }) {
  const rows = ordered(device.segments);
  const told = rows.filter(([, each]) => each.promised_bytes).map(([, each]) => `${nameOf(each)} ${size(each.promised_bytes)}, ${percent(each.promised_bytes / device.budget_bytes)}`);
  return html`<div class="membar" role="img" aria-label=${`${name}: ${told.join('; ')}`}>
    ${rows.map(([id, segment]) => html`<${Segment} key=${id} segment=${segment} budget=${device.budget_bytes} />`)}
  </div>`;
}

export const MemoryLegend = () => html`<p class="legend">
  ${KV_PARTS.map(([key, text, colour]) => html`<span key=${key}><i class="dot" style=${{ background: `var(${colour})` }}></i>${text}</span>`)}
  <span><i class="dot" style=${{ background: 'var(--reserve)' }}></i>Reserve</span>
  <span><i class="dot" style=${{ background: 'var(--other)' }}></i>Other processes</span>
  <span>As wide as it is promised, as full as it is used.</span>
</p>`;
