// A deployment's policy: the fields of a form, and what was typed as the values that the server takes.
import { html } from '../lib.js';
import { label, parseSize, size } from '../format.js';
import { Check, Choice, TextField } from './dialog.js';

/** @typedef {'size' | 'whole' | 'number'} Kind */

/** @type {[string, Kind, string, string][]} */
const NUMBERS = [
  ['priority', 'whole', 'Priority', 'Higher is served first and evicted last.'],
  ['kv_guarantee_bytes', 'size', 'KV guarantee', 'KV that is its alone while it is resident. Empty: it shares all KV.'],
  ['kv_cap_bytes', 'size', 'KV cap', 'Most KV it may hold. Empty: no cap.'],
  ['max_model_len', 'whole', 'Longest text, tokens', 'Prompt and output together. Empty: the model\'s own.'],
  ['idle_timeout_s', 'number', 'Idle timeout, s', 'Seconds without a request before it sleeps. Empty: the server\'s default.'],
  ['min_replicas', 'whole', 'Fewest replicas', 'Those that stay resident without requests.'],
  ['max_replicas', 'whole', 'Most replicas', 'Those that load may bring, one on each device.'],
];

const PREFIX_CACHE = /** @type {[string, string][]} */ ([
  ['tenant', 'One tenant\'s requests'], ['shared', 'All tenants\' requests'], ['off', 'None'],
]);

/** What the form holds at first. @param {any} policy @returns {Record<string, any>} */
export function formOf(policy) {
  /** @type {Record<string, any>} */
  const form = { enabled: policy.enabled ?? true, pinned: policy.pinned ?? false, prefix_cache: policy.prefix_cache ?? 'tenant' };
  for (const [name, kind] of NUMBERS) {
    const value = policy[name];
    form[name] = value == null ? '' : kind === 'size' ? size(value).replace(' ', '') : String(value);
    if (kind === 'size' && value != null && parseSize(form[name]) !== value) form[name] = String(value);
  }
  return form;
}

/**
 * The fields that differ between two forms, as the server takes them; null for an empty one.
 * @param {Record<string, any>} before
 * @param {Record<string, any>} after
 * @returns {{changes: Record<string, any>, errors: Record<string, string>}}
 */
export function changesOf(before, after) {
  /** @type {Record<string, any>} */
  const changes = {};
  /** @type {Record<string, string>} */
  const errors = {};
  for (const name of ['enabled', 'pinned', 'prefix_cache']) if (before[name] !== after[name]) changes[name] = after[name];
  for (const [name, kind] of NUMBERS) {
    const text = after[name].trim();
    if (text === before[name].trim()) continue;
    if (text === '') {
      changes[name] = null;
      continue;
    }
    const value = kind === 'size' ? parseSize(text) : Number(text);
    if (!Number.isFinite(value) || (kind !== 'number' && !Number.isInteger(value))) {
      errors[name] = kind === 'size' ? 'Write a size like 512MiB.' : kind === 'whole' ? 'Write a whole number.' : 'Write a number.';
    } else changes[name] = value;
  }
  return { changes, errors };
}

/** @param {{form: Record<string, any>, onChange: (form: Record<string, any>) => void, errors: Record<string, string>}} props */
export const PolicyFields = ({ form, onChange, errors }) => {
  const set = (/** @type {string} */ name) => (/** @type {any} */ value) => onChange({ ...form, [name]: value });
  return html`<div class="stack">
    <div class="row policy-checks">
      <${Check} label="Enabled" checked=${form.enabled} onChange=${set('enabled')} hint="Serve it at all." />
      <${Check} label="Pinned" checked=${form.pinned} onChange=${set('pinned')} hint="Never put to sleep." />
    </div>
    <div class="fields">
      ${NUMBERS.map(([name, kind, text, hint]) => html`<${TextField} key=${name} label=${text} hint=${hint} error=${errors[name]} value=${form[name]} onInput=${set(name)} inputmode=${kind === 'size' ? 'text' : 'decimal'} placeholder=${kind === 'size' ? 'like 512MiB' : ''} />`)}
      <${Choice} label="Prefixes shared by" value=${form.prefix_cache} choices=${PREFIX_CACHE} onChange=${set('prefix_cache')} hint="With all tenants, each can tell by the time what others sent." />
    </div>
  </div>`;
};

/** A policy as pairs to read. @param {{policy: any}} props */
export const PolicyPairs = ({ policy }) => html`<dl class="pairs">
  ${Object.entries(policy).map(([name, value]) => html`<dt key=${name}>${NUMBERS.find(([each]) => each === name)?.[2] ?? label(name)}</dt><dd key=${`${name} value`}>${shown(name, value)}</dd>`)}
</dl>`;

/** @param {string} name @param {any} value */
function shown(name, value) {
  if (value == null) return html`<span class="faint">not set</span>`;
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return name.endsWith('_bytes') ? size(value) : name.endsWith('_s') ? `${value} s` : String(value);
}
