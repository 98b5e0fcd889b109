// The residency timeline: where each model was, and for each change why, who had to go, and who gained.
import { html, useEffect, useState } from '../lib.js';
import { get } from '../api.js';
import { clockTime, duration, label, number, size, unix } from '../format.js';
import { deploymentPath, go, Link, place } from '../router.js';
import { addEvents, connection, deployments, events, now } from '../store.js';
import { Badge, Card, Empty, Head, Live, Segmented } from '../ui/parts.js';
import { CHANGES, spans, Timeline, TimelineLegend } from '../ui/timeline.js';

const WINDOWS = /** @type {[number, string][]} */ ([[300, '5 min'], [1800, '30 min'], [7200, '2 h'], [43200, '12 h']]);
const PAGE = 500;

/** Asks for the changes back to a time; a few pages at most. @param {number} from */
async function fetchChanges(from) {
  const kinds = CHANGES.map((kind) => `kind=${kind}`).join('&');
  let before = '';
  for (let round = 0; round < 4; round += 1) {
    const found = await get(`events?limit=${PAGE}&${kinds}${before}`);
    addEvents(found);
    if (found.length < PAGE || unix(found.at(-1).at) < from) return;
    before = `&before=${found.at(-1).id}`;
  }
}

/** A figure by the unit in its name. @param {string} name @param {any} value */
export function figure(name, value) {
  if (typeof value !== 'number') return String(value);
  if (name.endsWith('_bytes') || name === 'bytes') return size(value);
  if (name.endsWith('_s') && !name.endsWith('_per_s')) return duration(value);
  return number(value);
}

/** Names in a list of what left or gained. @param {any[]} rows */
const named = (rows) => rows.map((each) => (typeof each === 'string' ? each : `${each.deployment ?? each.name ?? each.replica_id}${each.bytes != null ? ` (${size(each.bytes)})` : ''}`)).join(', ');

/** @param {{scores: any}} props */
const Scores = ({ scores }) => {
  const rows = Object.entries(scores).sort(([, a], [, b]) => (typeof b === 'number' && typeof a === 'number' ? b - a : 0));
  return html`<table><caption class="visually-hidden">Scores</caption><thead><tr><th scope="col">Deployment</th><th scope="col" class="num">Score</th></tr></thead>
    <tbody>${rows.map(([name, value]) => html`<tr key=${name}><th scope="row" class="break">${name}</th><td class="num">${typeof value === 'object' && value ? Object.entries(value).map(([part, each]) => `${part} ${figure(part, each)}`).join(', ') : figure(name, value)}</td></tr>`)}</tbody></table>`;
};

/** @param {{event: any}} props */
export function Change({ event }) {
  const detail = event.detail ?? {};
  const figures = Object.entries(event.figures ?? {});
  return html`<div class="stack">
    <p class="row"><${Badge} state="plain">${event.kind.replace('_', ' ')}<//> ${event.deployment && html`<${Link} to=${deploymentPath(event.deployment)}>${event.deployment}<//>`}<span class="faint">${clockTime(event.at)}</span></p>
    <p>${event.reason}</p>
    <dl class="pairs">
      ${detail.displaced?.length > 0 && html`<dt>Had to go</dt><dd>${named(detail.displaced)}</dd>`}
      ${detail.gained?.length > 0 && html`<dt>Gained</dt><dd>${named(detail.gained)}</dd>`}
      ${detail.bytes != null && html`<dt>Bytes moved</dt><dd>${size(detail.bytes)}</dd>`}
      ${event.device && html`<dt>Device</dt><dd>${event.device}</dd>`}
      ${event.worker && html`<dt>Worker</dt><dd>${event.worker}</dd>`}
      ${figures.map(([name, value]) => html`<dt key=${name}>${label(name)}</dt><dd key=${`${name} value`}>${figure(name, value)}</dd>`)}
    </dl>
    ${detail.scores && Object.keys(detail.scores).length > 0 && html`<${Scores} scores=${detail.scores} />`}
  </div>`;
}

/** Buttons to the changes of a deployment around the chosen one: marks may lie on each other. @param {{own: any[], chosen: any}} props */
function Steps({ own, chosen }) {
  const place = own.indexOf(chosen);
  const to = (/** @type {any} */ each) => () => each && go(`/timeline?event=${each.id}`, true);
  return html`<span class="row tight">
    <button class="small" disabled=${place < 1} onClick=${to(own[place - 1])}>Earlier</button>
    <button class="small" disabled=${place < 0 || place >= own.length - 1} onClick=${to(own[place + 1])}>Later</button>
  </span>`;
}

export default function Residency() {
  const [window, setWindow] = useState(1800);
  const [failed, setFailed] = useState('');
  const to = now.value;
  const from = to - window;
  const isLive = connection.value === 'live';
  useEffect(() => {
    fetchChanges(Date.now() / 1000 - window).then(() => setFailed(''), (error) => setFailed(error.message));
  }, [window, isLive]);
  const chosenId = Number(place.value.query.get('event')) || null;
  const changes = events.value.filter((each) => each.deployment && CHANGES.includes(each.kind));
  const chosen = changes.find((each) => each.id === chosenId);
  const names = [...new Set([...Object.keys(deployments.value), ...changes.filter((each) => unix(each.at) > from).map((each) => each.deployment)])].sort();
  const lanes = names.map((name) => {
    const own = changes.filter((each) => each.deployment === name).reverse();
    return {
      name,
      label: html`<${Link} to=${deploymentPath(name)}>${name}<//>`,
      spans: spans(own, deployments.value[name], from, to),
      changes: own.filter((each) => unix(each.at) >= from),
    };
  });
  const number = lanes.reduce((sum, each) => sum + each.changes.length, 0);
  return html`<${Head} title="Residency" about="Where each model was. Choose a change to see why it was made, who had to go for it, and what it gained.">
      <${Segmented} label="Length of time" value=${window} choices=${WINDOWS} onChange=${setWindow} />
    <//>
    <${Live}><div class="grid-main">
      <${Card} flush title="Models over time" aside=${html`<span class="faint small">${number} changes</span>`} foot=${html`<${TimelineLegend} />${failed && html`<span class="bad">${failed}</span>`}`}>
        ${lanes.length ? html`<${Timeline} lanes=${lanes} from=${from} to=${to} chosen=${chosenId} onChoose=${(/** @type {any} */ each) => go(`/timeline?event=${each.id}`, true)} />`
          : html`<${Empty} title="No models yet"><p>Changes appear here as soon as a model is deployed.</p><//>`}
      <//>
      <${Card} title="Why" aside=${chosen && html`<${Steps} own=${lanes.find((each) => each.name === chosen.deployment)?.changes ?? []} chosen=${chosen} />`}>
        ${chosen ? html`<${Change} event=${chosen} />` : html`<${Empty} title="No change chosen"><p>Choose a mark in the timeline; the arrow keys go from one to the next.</p><//>`}
      <//>
    </div><//>`;
}
