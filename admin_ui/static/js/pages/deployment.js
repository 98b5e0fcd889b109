// One deployment: where it is and why, its replicas, its policy, its events and charts.
import { html, useCallback, useEffect, useState } from '../lib.js';
import { get, inPath, patch, remove } from '../api.js';
import { duration, number, size } from '../format.js';
import { ofDeployments } from '../history.js';
import { go, Link } from '../router.js';
import { addEvents, deployments, events, isKnown, now } from '../store.js';
import { Chart } from '../ui/chart.js';
import { FormDialog, tried } from '../ui/dialog.js';
import { EditPolicy } from '../ui/edit-policy.js';
import { Act, Badge, Card, Empty, Feed, Head, Live, Problem, Skeleton } from '../ui/parts.js';
import { PolicyPairs } from '../ui/policy.js';
import { Table } from '../ui/table.js';
import { Condition, Moves, State } from './deployments.js';

const WAY_IN = /** @type {Record<string, string>} */ ({
  there: 'It is there.', comes: 'It would come in now.', evicts: 'It would come in, and others would sleep for it.',
  waits: 'It would wait.', blocked: 'It would wait, and nothing can leave for it.', never: 'It cannot come in.',
});

/** @type {import('../ui/table.js').Column[]} */
const REPLICAS = [
  { key: 'id', title: 'Replica', head: true, cell: ([id]) => id },
  { key: 'residency', title: 'Residency', cell: ([, row]) => html`<${Badge} state=${row.residency} />` },
  { key: 'worker', title: 'Worker', cell: ([, row]) => row.worker ?? '–' },
  { key: 'lease', title: 'Weights', num: true, cell: ([, row]) => size(row.lease_bytes) },
  { key: 'active', title: 'Requests', num: true, cell: ([, row]) => row.num_active ?? 0 },
  { key: 'reason', title: 'Why', wide: true, cell: ([, row]) => html`<span class="soft small">${row.reason}</span>` },
];

/** @param {{name: string}} props */
function Charts({ name }) {
  const { at, series } = ofDeployments.value;
  const running = series[`running:${name}`];
  if (!running || at.length < 2) return html`<${Card} title="Requests"><p class="soft small">Charts begin when the page is opened.</p><//>`;
  return html`<${Card} title="Requests" foot="Since this page was opened."><${Chart} label=${`Requests of ${name}`} at=${at} format=${number} height=${170} lines=${[
    { label: 'running', colour: '--kv-used', values: running, area: true },
    { label: 'waiting', colour: '--kv-parked', values: series[`waiting:${name}`] },
  ]} /><//>`;
}

/** @param {{name: string, onClose: () => void}} props */
const Delete = ({ name, onClose }) => html`<${FormDialog} title=${`Delete ${name}?`} action="Delete" kind="danger" done=${`${name} is no longer served.`} onClose=${onClose}
  run=${async () => { await remove(`deployments/${inPath(name)}`); go('/deployments', true); }}>
  ${() => html`<p>Requests that run go on to their end; new ones are refused. The model stays registered.</p>`}
<//>`;

/** @param {{why: any}} props */
const Why = ({ why }) => html`<div class="stack">
  <dl class="pairs">
    <dt>Now</dt><dd>${why.reason ?? 'As it was left.'}</dd>
    ${why.way_in && html`<dt>If asked for now</dt><dd>${why.way_in.message || WAY_IN[why.way_in.verdict]}</dd>`}
    ${why.way_in?.leaving.length > 0 && html`<dt>Would have to go</dt><dd>${why.way_in.leaving.map((/** @type {any} */ each) => html`<div key=${each.replica_id}>${each.deployment}, ${size(each.freed_bytes)}: <span class="soft">${each.reason}</span></div>`)}</dd>`}
  </dl>
</div>`;

/** @param {{name: string}} props */
export function Deployment({ name }) {
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [open, setOpen] = useState('');
  const row = deployments.value[name];
  const path = `deployments/${inPath(name)}`;
  const load = useCallback(() => {
    Promise.all([get(path), get(`${path}/why`), get(`events?limit=50&deployment=${encodeURIComponent(name)}`)]).then(
      ([shown, why, last]) => {
        addEvents(last);
        setFound({ shown, why });
        setError(null);
      },
      setError,
    );
  }, [name]);
  useEffect(load, [name, row?.residency, row?.pinned, row?.enabled, row?.version, !found && !row?.waits_for]);
  const fault = error?.status === 404 && row?.waits_for ? null : error; // it is being made
  const own = events.value.filter((each) => each.deployment === name).slice(0, 12);
  const disable = () => tried(() => patch(path, { enabled: false }), `${name} is disabled.`);
  const crumb = html`<${Link} to="/deployments">Deployments<//>`;
  if (isKnown.value && !row && !found) {
    return html`<${Head} title=${name} crumb=${crumb} />${error ? html`<${Problem} error=${error} retry=${load} />` : html`<${Skeleton} />`}`;
  }
  return html`<${Head} title=${name} crumb=${crumb} about=${row && html`<span class="row"><${State} row=${row} /><${Condition} row=${row} /></span>`}>
      ${row && html`<${Moves} name=${name} row=${row} small=${false} />`}
      <${Link} class="button" to=${`/playground?a=${encodeURIComponent(name)}`}>Try it<//>
      ${row && row.enabled !== false && html`<${Act} run=${disable}>Disable<//>`}
      <button class="danger" onClick=${() => setOpen('delete')}>Delete</button>
    <//>
    <${Live}>
      <dl class="tiles" aria-label="Figures now">
        ${[['Running', number(row?.num_running ?? 0)], ['Waiting', number(row?.num_waiting ?? 0)], ['In this state', row?.since ? duration(Math.max(0, Math.floor(now.value - row.since))) : '–'], ['Wake takes', duration(row?.wake_s)], ['Load takes', duration(row?.load_s)], ['Version', row?.version != null ? `v${row.version}` : '–']].map(([title, value]) => html`<div class="tile" key=${title}><dt>${title}</dt><dd class="value">${value}</dd>${title === 'Version' && html`<dd class="note">${row?.precision} ${row?.engine}</dd>`}</div>`)}
      </dl>
      ${fault && html`<${Problem} error=${fault} retry=${load} />`}
      <div class="grid-main">
        <div class="stack">
          <${Card} title="Why it is where it is">${found ? html`<${Why} why=${found.why} />` : html`<${Skeleton} />`}<//>
          <${Card} flush title="Replicas">${row && Object.keys(row.replicas ?? {}).length ? html`<${Table} caption="Replicas" columns=${REPLICAS} rows=${Object.entries(row.replicas)} rowKey=${(/** @type {[string, any]} */ [id]) => id} />` : html`<${Empty} title="No replicas"><p>None is on a device or in host memory.</p><//>`}<//>
          <${Charts} name=${name} />
          <${Card} flush title="Events" aside=${html`<${Link} class="small" to="/timeline">Residency<//>`}>${own.length ? html`<${Feed} events=${own} />` : html`<${Empty} title="No events yet" />`}<//>
        </div>
        <${Card} title="Effective policy" aside=${found && html`<button class="small" onClick=${() => setOpen('policy')}>Edit</button>`}>
          ${found ? html`<${PolicyPairs} policy=${found.shown.policy} />` : html`<${Skeleton} />`}
        <//>
      </div>
    <//>
    ${open === 'policy' && html`<${EditPolicy} name=${name} policy=${found.shown.policy} onClose=${() => setOpen('')} onDone=${load} />`}
    ${open === 'delete' && html`<${Delete} name=${name} onClose=${() => setOpen('')} />`}`;
}
