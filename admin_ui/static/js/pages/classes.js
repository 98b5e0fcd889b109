// SLO classes: what is promised, how well it is kept, and the requests for which it was not.
import { Fragment, html, useCallback, useEffect, useState } from '../lib.js';
import { get, inPath, patch, post, remove } from '../api.js';
import { clockTime, duration, number, percent } from '../format.js';
import { attainment } from '../store.js';
import { Choice, FormDialog, TextField } from '../ui/dialog.js';
import { Card, Empty, Head, Meter, Problem, Skeleton } from '../ui/parts.js';
import { Table } from '../ui/table.js';

const MISSES = 20;
const LOOK_MS = 3000;
const ON_MISS = /** @type {[string, string][]} */ ([['batch', 'Serve them as room allows'], ['refuse', 'Refuse them at once']]);

/** @param {{row: any, onClose: () => void, onDone: () => void}} props */
function Edit({ row, onClose, onDone }) {
  const [form, setForm] = useState({
    name: row?.name ?? '', ttft_target_s: String(row?.ttft_target_s ?? '1'), tpot_target_s: String(row?.tpot_target_s ?? '0.1'),
    goal: String(row?.goal != null ? row.goal * 100 : 95), priority: String(row?.priority ?? 0), on_miss: row?.on_miss ?? 'batch',
  });
  const set = (/** @type {string} */ name) => (/** @type {string} */ value) => setForm({ ...form, [name]: value });
  const run = async () => {
    const values = {
      ttft_target_s: Number(form.ttft_target_s), tpot_target_s: Number(form.tpot_target_s), goal: Number((Number(form.goal) / 100).toFixed(6)),
      priority: Number(form.priority), on_miss: form.on_miss,
    };
    if (Object.values(values).some((each) => typeof each === 'number' && Number.isNaN(each))) throw new Error('Some fields are no numbers.');
    if (row) await patch(`slo-classes/${inPath(row.name)}`, values);
    else await post('slo-classes', { name: form.name.trim(), ...values });
    onDone();
  };
  return html`<${FormDialog} title=${row ? `Change ${row.name}` : 'New SLO class'} action=${row ? 'Save' : 'Create'} done=${row ? 'Saved.' : 'Created.'} onClose=${onClose} run=${run}>${() => html`
    ${!row && html`<${TextField} label="Name" name="name" value=${form.name} onInput=${set('name')} />`}
    <div class="fields">
      <${TextField} label="First token within, s" value=${form.ttft_target_s} onInput=${set('ttft_target_s')} inputmode="decimal" />
      <${TextField} label="Each further token within, s" value=${form.tpot_target_s} onInput=${set('tpot_target_s')} inputmode="decimal" />
      <${TextField} label="Goal, %" value=${form.goal} onInput=${set('goal')} inputmode="decimal" hint="Share of the requests that are to meet both." />
      <${TextField} label="Priority" value=${form.priority} onInput=${set('priority')} inputmode="numeric" hint="Higher goes first; 0 is that of tenants without a class." />
    </div>
    <${Choice} label="Requests that cannot meet them" value=${form.on_miss} onChange=${set('on_miss')} choices=${ON_MISS} />`}<//>`;
}

const PARTS = /** @type {[string, string, string][]} */ ([['queue_s', 'queue', 'phase-queue'], ['wake_s', 'wake', 'phase-wake'], ['prefill_s', 'prefill', 'phase-prefill'], ['decode_s', 'decode', 'phase-decode']]);

/** @param {{miss: any}} props */
export function Phases({ miss }) {
  const total = PARTS.reduce((sum, [name]) => sum + (miss[name] ?? 0), 0);
  if (!total) return null;
  const told = PARTS.filter(([name]) => miss[name]).map(([name, text]) => `${text} ${duration(miss[name])}`).join(', ');
  return html`<div class="stack tight"><div class="phasebar inline" role="img" aria-label=${told}>${PARTS.map(([name, , kind]) => miss[name] > 0 && html`<i key=${name} class=${kind} style=${{ width: `${(miss[name] / total) * 100}%` }}></i>`)}</div><span class="small soft">${told}</span></div>`;
}

/** Where most of a miss's time went. @param {any} miss */
function cause(miss) {
  if (miss.ttft_s == null && miss.prefill_s == null) return 'refused, or failed before a worker had it';
  const [name, text] = PARTS.reduce((most, each) => ((miss[each[0]] ?? 0) > (miss[most[0]] ?? 0) ? each : most));
  return miss[name] ? `mostly ${text}` : 'failed';
}

/** @type {import('../ui/table.js').Column[]} */
const MISS_COLUMNS = [
  { key: 'at', title: 'Ended', head: true, cell: (row) => clockTime(row.at) },
  { key: 'why', title: 'Why', cell: cause },
  { key: 'ttft', title: 'TTFT', num: true, cell: (row) => duration(row.ttft_s) },
  { key: 'tpot', title: 'TPOT', num: true, cell: (row) => duration(row.tpot_s) },
  { key: 'phases', title: 'Where its time went', cell: (row) => html`<${Phases} miss=${row} />` },
  { key: 'id', title: 'Request', wide: true, cell: (row) => html`<code>${row.request_id}</code>` },
];

/** @param {{rows: any[]}} props */
function Attained({ rows }) {
  const [open, setOpen] = useState('');
  if (!rows.length) return html`<${Empty} title="No requests yet"><p>Each request is judged by the targets of its class when it has ended.</p><//>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Attainment"><table class="rows-hover"><caption class="visually-hidden">Attainment by tenant, class and model</caption>
    <thead><tr><th scope="col">Tenant</th><th scope="col">Class</th><th scope="col">Model</th><th scope="col" class="num">Goal</th><th scope="col" class="num">1 min</th><th scope="col" class="num">1 h</th><th scope="col" class="num">Requests, 1 h</th><th scope="col">Error budget left</th><th scope="col"><span class="visually-hidden">Misses</span></th></tr></thead>
    <tbody>${rows.map((row) => {
      const key = `${row.tenant} ${row.slo_class} ${row.model}`;
      const hour = row.windows['1h'];
      const left = hour?.budget_left;
      const isBelow = row.goal != null && hour?.attained != null && hour.attained < row.goal;
      return html`<${Fragment} key=${key}><tr><th scope="row">${row.tenant}</th><td>${row.slo_class}</td><td>${row.model}</td><td class="num soft">${percent(row.goal)}</td>
        <td class="num">${percent(row.windows['1m']?.attained)}</td><td class=${`num ${isBelow ? 'bad' : ''}`}>${percent(hour?.attained)}</td><td class="num soft">${number(hour?.requests ?? 0)}</td>
        <td>${left == null ? html`<span class="faint">no goal</span>` : html`<div class="stack tight"><span class=${`small ${left < 0 ? 'bad' : 'soft'}`}>${left < 0 ? `overdrawn by ${percent(-left)}` : percent(left)}</span><${Meter} share=${left} kind=${left <= 0 ? 'bad' : left < 0.25 ? 'warn' : 'good'} label="Error budget left" /></div>`}</td>
        <td><span class="actions">${row.misses.length > 0 && html`<button class="small" aria-expanded=${open === key} aria-label=${`${row.misses.length} misses of ${row.tenant}, ${row.model}`} onClick=${() => setOpen(open === key ? '' : key)}>${row.misses.length} misses</button>`}</span></td></tr>
        ${open === key && html`<tr><td colspan="9" class="within"><${Table} caption=${`Last misses of ${key}`} columns=${MISS_COLUMNS} rows=${row.misses} rowKey=${(/** @type {any} */ each) => each.request_id} /></td></tr>`}<//>`;
    })}</tbody></table></div>`;
}

export default function Classes() {
  const [classes, setClasses] = useState(/** @type {any[] | null} */ (null));
  const [rows, setRows] = useState(/** @type {any[] | null} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [open, setOpen] = useState(/** @type {any} */ (null));
  const load = useCallback(() => {
    get('slo-classes').then(setClasses, setError);
  }, []);
  useEffect(load, []);
  useEffect(() => {
    let seen = attainment.peek();
    const look = () => get(`slo?misses=${MISSES}`).then((found) => { setRows(found); setError(null); }, setError);
    look();
    // The live state says that something was judged; which requests missed, and why, is asked for.
    const timer = setInterval(() => {
      if (attainment.peek() !== seen) {
        seen = attainment.peek();
        look();
      }
    }, LOOK_MS);
    return () => clearInterval(timer);
  }, []);
  const close = () => setOpen(null);
  /** @type {import('../ui/table.js').Column[]} */
  const columns = [
    { key: 'name', title: 'Class', head: true, cell: (row) => row.name },
    { key: 'ttft', title: 'First token within', num: true, cell: (row) => duration(row.ttft_target_s) },
    { key: 'tpot', title: 'Each further within', num: true, cell: (row) => duration(row.tpot_target_s) },
    { key: 'goal', title: 'Goal', num: true, cell: (row) => percent(row.goal) },
    { key: 'priority', title: 'Priority', num: true, cell: (row) => row.priority },
    { key: 'miss', title: 'Cannot be met', wide: true, cell: (row) => html`<span class="soft">${row.on_miss === 'refuse' ? 'refused' : 'served as room allows'}</span>` },
    { key: 'tenants', title: 'Tenants', num: true, cell: (row) => number(row.tenants.length) },
    { key: 'actions', title: '', cell: (row) => html`<span class="actions"><button class="small" aria-label=${`Change ${row.name}`} onClick=${() => setOpen({ what: 'edit', row })}>Change</button><button class="small danger" aria-label=${`Delete ${row.name}`} onClick=${() => setOpen({ what: 'delete', row })}>Delete</button></span>` },
  ];
  return html`<${Head} title="SLO classes" about="What tenants' requests are promised, the share for which it is kept, and why it was not for the others.">
      <button class="primary" onClick=${() => setOpen({ what: 'edit' })}>New class</button>
    <//>
    ${error && html`<${Problem} error=${error} retry=${load} />`}
    <${Card} flush title="Classes">${!classes ? html`<${Skeleton} />` : classes.length ? html`<${Table} caption="SLO classes" columns=${columns} rows=${classes} rowKey=${(/** @type {any} */ row) => row.name} />` : html`<${Empty} title="No classes yet"><p>Requests of tenants without a class are served with best effort.</p><//>`}<//>
    <${Card} flush title="Attainment by tenant, class and model">${rows ? html`<${Attained} rows=${rows} />` : html`<${Skeleton} />`}<//>
    ${open?.what === 'edit' && html`<${Edit} row=${open.row} onClose=${close} onDone=${load} />`}
    ${open?.what === 'delete' && html`<${FormDialog} title=${`Delete ${open.row.name}?`} action="Delete" kind="danger" done="Deleted." onClose=${close} run=${async () => { await remove(`slo-classes/${inPath(open.row.name)}`); load(); }}>${() => html`<p>A class that tenants have, or may use, is not deleted.</p>`}<//>`}`;
}
