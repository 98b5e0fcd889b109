// The overview: what the machine is doing now, and whether it keeps its promises.
import { html, useEffect, useMemo } from '../lib.js';
import { get } from '../api.js';
import { counted, duration, number, percent, size } from '../format.js';
import { fetchHistory, history, kvInUse } from '../history.js';
import { deploymentPath, Link } from '../router.js';
import { addEvents, alerts, attainment, deployments, devices, events, figures, queues } from '../store.js';
import { Chart } from '../ui/chart.js';
import { MemoryBar } from '../ui/membar.js';
import { Ago, Badge, Card, Empty, Feed, Head, Live, Meter, Skeleton, Spark } from '../ui/parts.js';

const SPARK_SAMPLES = 120;

/** @param {{title: string, value: any, unit?: string, note?: any, values?: (number | null)[], share?: number}} props */
const Tile = ({ title, value, unit, note, values, share }) => html`<div class="tile">
  <dt>${title}</dt>
  <dd class="value">${value}${unit && html`<small>${unit}</small>`}</dd>
  <dd class="note">${note}</dd>
  <dd>${share != null ? html`<${Meter} share=${share} label=${title} />` : html`<${Spark} values=${(values ?? []).slice(-SPARK_SAMPLES)} label=${`${title}, last minutes`} />`}</dd>
</div>`;

/** The sums of several series, place by place. @param {string} prefix */
function summed(prefix) {
  const found = Object.entries(history.value.series).filter(([name]) => name.startsWith(prefix));
  return history.value.at.map((_, index) => found.reduce((sum, [, values]) => sum + (values[index] ?? 0), 0));
}

/** A duration with its unit apart. @param {number | undefined} seconds @returns {[string, string]} */
function apart(seconds) {
  const [value, unit = ''] = duration(seconds).split(' ');
  return [value, unit];
}

function Tiles() {
  const now = figures.value;
  const { series } = history.value;
  const all = Object.values(devices.value);
  const budget = all.reduce((sum, each) => sum + each.budget_bytes, 0);
  const free = all.reduce((sum, each) => sum + (each.segments.free?.promised_bytes ?? 0), 0);
  const kv = all.reduce((sum, each) => sum + kvInUse(each), 0);
  const kvPromised = all.reduce((sum, each) => sum + Object.values(each.segments).reduce((bytes, segment) => bytes + (segment.kind === 'kv' ? segment.promised_bytes : 0), 0), 0);
  const known = all.filter((each) => each.utilization != null);
  const busy = known.length ? known.reduce((sum, each) => sum + each.utilization, 0) / known.length : null;
  const late = Object.values(queues.value).reduce((sum, each) => sum + (each.num_late ?? 0), 0);
  const [p50, p50Unit] = apart(now.ttft_p50_s);
  const kvHistory = summed('kv_in_use:');
  const busyHistory = summed('utilization:').map((each) => each / Math.max(1, known.length));
  return html`<dl class="tiles" aria-label="Figures now">
    <${Tile} title="Tokens per second" value=${number(now.tokens_per_s ?? 0)} note=${`${number(now.requests_per_s ?? 0)} requests/s`} values=${series.tokens_per_s} />
    <${Tile} title="Time to first token" value=${p50} unit=${p50Unit} note=${`p95 ${duration(now.ttft_p95_s)}`} values=${series.ttft_p50_s} />
    <${Tile} title="Requests" value=${number(now.running ?? 0)} unit="running" note=${`${number(now.waiting ?? 0)} waiting${late ? `, ${late} late` : ''}${now.refused_per_s ? `, ${number(now.refused_per_s)}/s refused` : ''}`} values=${series.running} />
    <${Tile} title="Device utilization" value=${busy == null ? '–' : percent(busy).replace(' %', '')} unit=${busy == null ? '' : '%'} note=${counted(all.length, 'device')} values=${busyHistory} />
    <${Tile} title="Memory promised" value=${size(budget - free).split(' ')[0]} unit=${size(budget - free).split(' ')[1]} note=${`of ${size(budget)}`} share=${budget ? (budget - free) / budget : 0} />
    <${Tile} title="KV in use" value=${size(kv).split(' ')[0]} unit=${size(kv).split(' ')[1]} note=${`of ${size(kvPromised)} promised`} values=${kvHistory} />
  </dl>`;
}

function Alerts() {
  const found = Object.entries(alerts.value).sort(([, a], [, b]) => (a.severity === b.severity ? b.since - a.since : a.severity === 'critical' ? -1 : 1));
  return html`<${Card} flush title="Alerts now" aside=${found.length > 0 && html`<span class="faint small">${found.length}</span>`}>
    ${found.length === 0 ? html`<${Empty} title="Nothing is wrong"><p>No alert rule holds at the moment.</p><//>`
      : found.map(([id, each]) => html`<div class="alert" key=${id}><${Badge} state=${each.severity} /><b>${each.title}</b><p>${each.text} <span class="faint"><${Ago} at=${each.since} /></span></p></div>`)}
  <//>`;
}

/** Attainment by class, requests of its tenants and models taken together. @param {Record<string, any>} rows */
function byClass(rows) {
  /** @type {Record<string, {num: number, met: number, goal?: number}>} */
  const classes = {};
  for (const row of Object.values(rows ?? {})) {
    const each = (classes[row.slo_class] ??= { num: 0, met: 0, goal: row.goal });
    each.num += row.num;
    each.met += row.num * (row.share ?? 0);
    each.goal ??= row.goal;
  }
  return classes;
}

/** Share left of the misses that a goal allows. @param {{num: number, met: number, goal?: number} | undefined} found */
function budgetLeft(found) {
  if (!found?.num || found.goal == null || found.goal >= 1) return null;
  return 1 - (found.num - found.met) / (found.num * (1 - found.goal));
}

function Attainment() {
  const hour = byClass(attainment.value['1h']);
  const minute = byClass(attainment.value['1m']);
  const names = Object.keys(hour).sort();
  if (!names.length) return html`<${Card} title="Attainment by class"><${Empty} title="No requests yet"><p>Requests of the last hour are judged here by the targets of their SLO class.</p><//><//>`;
  return html`<${Card} flush title="Attainment by class" aside=${html`<${Link} class="small" to="/classes">Tenants and misses<//>`}>
    <div class="scroll" tabindex="0" role="region" aria-label="Attainment by class"><table><caption class="visually-hidden">Attainment by class</caption>
      <thead><tr><th scope="col">Class</th><th scope="col" class="num">Goal</th><th scope="col" class="num">1 min</th><th scope="col" class="num">1 h</th><th scope="col">Error budget left</th></tr></thead>
      <tbody>${names.map((name) => {
        const left = budgetLeft(hour[name]);
        const share = hour[name].num ? hour[name].met / hour[name].num : null;
        const recent = minute[name]?.num ? minute[name].met / minute[name].num : null;
        const goal = hour[name].goal;
        const isBelow = goal != null && share != null && share < goal;
        return html`<tr key=${name}><th scope="row">${name}</th><td class="num soft">${percent(goal)}</td><td class="num">${percent(recent)}</td><td class=${`num ${isBelow ? 'bad' : ''}`}>${percent(share)}</td>
          <td>${left == null ? html`<span class="faint">no goal</span>` : html`<div class="stack tight"><span class="small ${left < 0 ? 'bad' : 'soft'}">${left < 0 ? `overdrawn by ${percent(-left)}` : percent(left)}</span><${Meter} share=${left} kind=${left <= 0 ? 'bad' : left < 0.25 ? 'warn' : 'good'} label=${`Error budget left of ${name}`} /></div>`}</td></tr>`;
      })}</tbody></table></div>
  <//>`;
}

/** @param {{at: number[], series: Record<string, (number | null)[]>}} found @param {string} name */
const valuesOf = (found, name) => found.series[name] ?? new Array(found.at.length).fill(null);

function Charts() {
  const found = history.value;
  if (found.at.length < 2) return html`<${Card} title="The last hour"><${Skeleton} /><//>`;
  return html`<div class="grid-2">
    <${Card} title="Tokens per second"><${Chart} label="Tokens per second" at=${found.at} format=${number}
      lines=${[{ label: 'tokens/s', colour: '--accent', values: valuesOf(found, 'tokens_per_s'), area: true }]} /><//>
    <${Card} title="Time to first token"><${Chart} label="Time to first token" at=${found.at} format=${duration}
      lines=${[{ label: 'p50', colour: '--hue-0', values: valuesOf(found, 'ttft_p50_s') }, { label: 'p95', colour: '--hue-2', values: valuesOf(found, 'ttft_p95_s') }]} /><//>
    <${Card} title="Requests"><${Chart} label="Requests" at=${found.at} format=${number}
      lines=${[{ label: 'running', colour: '--kv-used', values: valuesOf(found, 'running'), area: true }, { label: 'waiting', colour: '--kv-parked', values: valuesOf(found, 'waiting') }]} /><//>
    <${Card} title="Device utilization"><${Chart} label="Device utilization" at=${found.at} format=${percent} most=${1.02}
      lines=${Object.keys(devices.value).map((name, index) => ({ label: name, colour: `--hue-${index % 8}`, values: valuesOf(found, `utilization:${name}`) }))} /><//>
  </div>`;
}

const STATES = ['resident', 'waking', 'loading', 'draining', 'warm', 'cold', 'failed'];

function Models() {
  const found = Object.entries(deployments.value);
  const counts = STATES.map((state) => /** @type {[string, number]} */ ([state, found.filter(([, each]) => each.residency === state).length])).filter(([, count]) => count);
  const waiting = found.filter(([, each]) => each.waits_for);
  return html`<${Card} title="Models and memory" aside=${html`<${Link} class="small" to="/memory">Memory map<//>`}>
    <div class="stack">
      <div class="row">${counts.map(([state, count]) => html`<${Badge} key=${state} state=${state}>${count} ${state}<//>`)}${!found.length && html`<span class="soft">No deployments yet. <${Link} class="text-link" to="/register">Register a model<//></span>`}</div>
      ${Object.entries(devices.value).map(([name, device]) => html`<div class="stack tight" key=${name}>
        <span class="row spread small"><b>${name}</b><span class="faint">${size(device.budget_bytes)}</span></span><${MemoryBar} name=${name} device=${device} /></div>`)}
      ${waiting.length > 0 && html`<ul class="stack tight">${waiting.slice(0, 5).map(([name, each]) => html`<li key=${name} class="small"><${Link} class="text-link" to=${deploymentPath(name)}>${name}<//> <span class="soft">${each.waits_for}</span></li>`)}</ul>`}
    </div>
  <//>`;
}

export default function Overview() {
  useEffect(() => {
    fetchHistory();
    get('events?limit=20').then(addEvents, () => {});
  }, []);
  const last = useMemo(() => events.value.slice(0, 8), [events.value]);
  return html`<${Head} title="Overview" />
    <${Live}>
      <${Tiles} />
      <div class="grid-main"><${Models} /><${Alerts} /></div>
      <${Charts} />
      <div class="grid-2">
        <${Attainment} />
        <${Card} flush title="Last decisions" aside=${html`<${Link} class="small" to="/timeline">Residency<//>`}>
          ${last.length ? html`<${Feed} events=${last} link=${(/** @type {string} */ name) => html`<${Link} to=${deploymentPath(name)}>${name}<//>`} />` : html`<${Empty} title="No decisions yet" />`}
        <//>
      </div>
    <//>`;
}
