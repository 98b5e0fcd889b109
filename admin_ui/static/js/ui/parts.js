// Small parts that every page is made of.
import { Fragment, computed, html, useEffect, useRef, useState } from '../lib.js';
import { connection, deployments, isKnown, now } from '../store.js';
import { ago, clockTime, unix } from '../format.js';

const NUM_HUES = 8;

/** @param {string} name */
function hashed(name) {
  let hash = 0;
  for (const letter of name) hash = (hash * 31 + letter.charCodeAt(0)) >>> 0;
  return hash % NUM_HUES;
}

/** Hues by deployment: by the name alone, save that no two have the same one while there are enough. */
const hues = computed(() => {
  const names = Object.keys(deployments.value).sort();
  /** @type {Map<string, number>} */
  const found = new Map();
  const taken = new Set();
  for (const name of names) {
    let each = hashed(name);
    while (taken.has(each) && taken.size < NUM_HUES) each = (each + 1) % NUM_HUES;
    taken.add(each);
    found.set(name, each);
  }
  return found;
});

/** A model's colour: the same wherever it is shown. @param {string} name */
export const hue = (name) => hues.value.get(name) ?? hashed(name);

const ICONS = {
  overview: 'M3 13h4V8H3zM9 13h4V3H9z',
  memory: 'M2.5 4.5h11v7h-11zM5.5 4.5v7M9.5 4.5v7',
  timeline: 'M2.5 4h6M5 8h8M3.5 12h5',
  deployments: 'M8 2.5 13.5 5 8 7.5 2.5 5zM2.5 8 8 10.5 13.5 8M2.5 11 8 13.5 13.5 11',
  register: 'M8 3v7M5 7l3 3 3-3M3 13h10',
  tenants: 'M6 7.5a2.4 2.4 0 1 0 0-4.8 2.4 2.4 0 0 0 0 4.8zM2 13c.3-2.3 1.900-3.500 4-3.500s3.700 1.200 4 3.500M11 7.500a2 2 0 0 0 0-4M12 9.700c1.200.5 1.800 1.600 2 3.300',
  classes: 'M8 13.500a5.500 5.500 0 1 0 0-11 5.500 5.500 0 0 0 0 11zM8 5v3l2 1.500',
  playground: 'M3 3.500h10v7H7.500L5 13v-2.500H3z',
  menu: 'M2.500 4.500h11M2.500 8h11M2.500 11.500h11',
  close: 'M4 4l8 8M12 4l-8 8',
  sun: 'M8 10.800a2.800 2.800 0 1 0 0-5.600 2.800 2.800 0 0 0 0 5.600zM8 1.500v1.300M8 13.200v1.300M1.500 8h1.300M13.200 8h1.300M3.400 3.400l.9.9M11.700 11.700l.9.9M12.600 3.400l-.9.9M4.300 11.700l-.9.9',
  moon: 'M13 9.500A5.500 5.500 0 0 1 6.500 3a5.500 5.500 0 1 0 6.500 6.500z',
  auto: 'M8 2.500a5.500 5.500 0 1 0 0 11zM8 2.500a5.500 5.500 0 0 1 0 11',
};

/** @param {{name: keyof typeof ICONS}} props */
export const Icon = ({ name }) =>
  html`<svg viewBox="0 0 16 16" aria-hidden="true" focusable="false"><path d=${ICONS[name]} /></svg>`;

/** @param {{title: string, about?: any, crumb?: any, children?: any}} props */
export function Head({ title, about, crumb, children }) {
  useEffect(() => {
    document.title = `${title} · Mooring`;
  }, [title]);
  return html`<div class="head">
    <div>${crumb && html`<span class="crumb">${crumb}</span>`}<h1>${title}</h1>${about && html`<p>${about}</p>`}</div>
    ${children && html`<div class="row">${children}</div>`}
  </div>`;
}

/** @param {any} props */
export const Card = ({ title, aside, foot, flush, children, ...rest }) => html`<section class="card" ...${rest}>
  ${title && html`<header><h2>${title}</h2>${aside}</header>`}
  <div class=${flush ? 'body flush' : 'body'}>${children}</div>
  ${foot && html`<footer>${foot}</footer>`}
</section>`;

/** @param {{state: string, children?: any}} props */
export const Badge = ({ state, children }) => html`<span class=${`badge ${state}`}>${children ?? state.replace('_', ' ')}</span>`;

/** What stands where there is nothing yet. @param {{title: string, children?: any}} props */
export const Empty = ({ title, children }) => html`<div class="empty"><h3>${title}</h3>${children}</div>`;

export const Skeleton = () => html`<div class="skeleton" role="status"><span class="visually-hidden">Loading</span><i></i><i></i><i></i></div>`;

/** @param {{error: any, retry?: () => void}} props */
export const Problem = ({ error, retry }) => html`<div class="problem" role="alert">
  <span>${error.message ?? String(error)}</span>
  ${retry && html`<button class="small" onClick=${retry}>Try again</button>`}
</div>`;

/** What the live state fills: a placeholder until it is known, faded while it is old. @param {any} props */
export const Live = ({ children }) => {
  if (!isKnown.value) return html`<${Skeleton} />`;
  const isOld = connection.value !== 'live';
  return html`<div class=${isOld ? 'live stale' : 'live'} aria-busy=${isOld}>${children}</div>`;
};

/** How long ago something was. @param {{at: number | string}} props */
export function Ago({ at }) {
  const seconds = typeof at === 'number' ? at : unix(at);
  return html`<time datetime=${new Date(seconds * 1000).toISOString()} title=${clockTime(seconds)}>${ago(seconds, now.value)}</time>`;
}

/** A bar for a share. @param {{share: number, kind?: string, label: string}} props */
export function Meter({ share, kind = '', label }) {
  const percent = Math.max(0, Math.min(1, share)) * 100;
  return html`<div class=${`meter ${kind}`} role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(percent)}>
    <i style=${{ width: `${percent}%` }}></i>
  </div>`;
}

/** A button for something that takes a while: it waits, and cannot be pressed twice. @param {any} props */
export function Act({ run, children, ...rest }) {
  const [busy, setBusy] = useState(false);
  const there = useRef(true);
  useEffect(() => () => { there.current = false; }, []);
  const press = async () => {
    setBusy(true);
    try {
      await run();
    } finally {
      if (there.current) setBusy(false);
    }
  };
  return html`<button type="button" ...${rest} disabled=${busy || rest.disabled} aria-busy=${busy} onClick=${press}>${children}</button>`;
}

/** A small line of the last values. @param {{values: (number | null)[], label: string}} props */
export function Spark({ values, label }) {
  const known = values.filter((each) => each != null);
  if (known.length < 2) return html`<svg class="spark" aria-hidden="true"></svg>`;
  const most = Math.max(...known, 1e-9);
  const step = 100 / (values.length - 1);
  let line = '';
  let first = -1;
  let last = 0;
  values.forEach((value, index) => {
    if (value == null) return;
    if (first < 0) first = index;
    last = index;
    line += `${line ? 'L' : 'M'}${(index * step).toFixed(1)} ${(26 - (24 * value) / most).toFixed(1)}`;
  });
  const area = `${line}L${(last * step).toFixed(1)} 28L${(first * step).toFixed(1)} 28Z`;
  return html`<svg class="spark" viewBox="0 0 100 28" preserveAspectRatio="none" role="img" aria-label=${label}>
    <path class="area" d=${area} /><path d=${line} />
  </svg>`;
}

/** Choices side by side, one of which holds. @param {{label: string, value: any, choices: [any, string][], onChange: (value: any) => void}} props */
export const Segmented = ({ label, value, choices, onChange }) => html`<div class="segmented" role="group" aria-label=${label}>
  ${choices.map(([each, text]) => html`<button type="button" key=${each} aria-pressed=${each === value} onClick=${() => onChange(each)}>${text}</button>`)}
</div>`;

/** The last events. @param {{events: any[], link?: (name: string) => any}} props */
export const Feed = ({ events, link }) => html`<ul class="feed">
  ${events.map((each) => html`<li key=${each.id}>
    <time datetime=${each.at} title=${each.at}>${clockTime(each.at)}</time>
    <span class="kind">${each.kind.replace('_', ' ')}</span>
    <span class="text">${each.deployment && link ? html`<${Fragment}>${link(each.deployment)}: <//>` : ''}${each.reason}</span>
  </li>`)}
</ul>`;
