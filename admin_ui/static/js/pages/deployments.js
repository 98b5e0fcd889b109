// Deployments: the list, and the dialog that makes one.
import { html, useEffect, useState } from '../lib.js';
import { get, inPath, patch, post } from '../api.js';
import { duration } from '../format.js';
import { deploymentPath, go, Link } from '../router.js';
import { deployments, isKnown, now, say } from '../store.js';
import { Choice, FormDialog, TextField, tried } from '../ui/dialog.js';
import { Fit, useFit } from '../ui/fit.js';
import { Act, Badge, Card, Empty, Head, Live, hue } from '../ui/parts.js';
import { changesOf, formOf, PolicyFields } from '../ui/policy.js';
import { Table } from '../ui/table.js';
import { Deployment } from './deployment.js';

const BLANK = formOf({ priority: 0, min_replicas: 0, max_replicas: 1 });
const AWAKE = new Set(['resident', 'loading', 'waking']);

/** @param {{onClose: () => void}} props */
function Create({ onClose }) {
  const [models, setModels] = useState(/** @type {any[] | null} */ (null));
  const [model, setModel] = useState('');
  const [versions, setVersions] = useState(/** @type {any[]} */ ([]));
  const [version, setVersion] = useState('');
  const [name, setName] = useState('');
  const [form, setForm] = useState(BLANK);
  const { changes, errors } = changesOf(BLANK, form);
  useEffect(() => {
    get('models').then((found) => {
      setModels(found);
      if (found.length) setModel(found[0].name);
    }, () => setModels([]));
  }, []);
  useEffect(() => {
    setVersion('');
    if (model) get(`models/${inPath(model)}/versions`).then(setVersions, () => setVersions([]));
  }, [model]);
  const fit = useFit(model && !Object.keys(errors).length ? { model, policy: changes } : null);
  const run = async () => {
    if (Object.keys(errors).length) throw new Error('Some fields of the policy cannot be read.');
    await post('deployments', { name: name.trim(), model, version: version ? Number(version) : null, policy: changes });
    go(deploymentPath(name.trim()));
  };
  if (models && !models.length) {
    return html`<${FormDialog} title="New deployment" action="Register a model" onClose=${onClose} run=${async () => go('/register')}>${() => html`<p>No model is registered yet. A deployment serves a registered model.</p>`}<//>`;
  }
  return html`<${FormDialog} title="New deployment" action="Deploy" done="Deployed." onClose=${onClose} run=${run}>${(/** @type {any} */ error) => html`
    <${TextField} label="Name" name="name" value=${name} onInput=${setName} required error=${error?.param === 'name' ? error.message : null} hint='What clients put in "model".' />
    <div class="fields">
      <${Choice} label="Model" value=${model} onChange=${setModel} choices=${(models ?? []).map((each) => [each.name, each.name])} />
      <${Choice} label="Version" value=${version} onChange=${setVersion} choices=${[['', 'Latest'], ...versions.map((each) => [String(each.number), `Version ${each.number}`])]} />
    </div>
    <details><summary>Policy</summary><${PolicyFields} form=${form} onChange=${setForm} errors=${errors} /></details>
    <${Fit} fit=${fit} empty="Choose a model to see whether it fits." />`}
  <//>`;
}

/** The buttons that move a deployment. @param {{name: string, row: any, small?: boolean}} props */
export function Moves({ name, row, small = true }) {
  const path = `deployments/${inPath(name)}`;
  const size = small ? 'small' : '';
  const wake = () => tried(() => post(`${path}/wake`), `${name} is resident.`);
  const sleep = () => tried(() => post(`${path}/sleep`), `${name} sleeps.`);
  const pin = () => tried(() => patch(path, { pinned: !row.pinned }), row.pinned ? `${name} is no longer pinned.` : `${name} is pinned.`);
  const enable = () => tried(() => patch(path, { enabled: true }), `${name} is served again.`);
  if (row.enabled === false) return html`<${Act} class=${size} run=${enable}>Enable<//>`;
  return html`
    ${AWAKE.has(row.residency) ? html`<${Act} class=${size} run=${sleep} disabled=${row.pinned} title=${row.pinned ? 'It is pinned' : undefined} aria-label=${`Sleep ${name}`}>Sleep<//>`
      : html`<${Act} class=${size} run=${wake} disabled=${row.residency === 'draining'} aria-label=${`Wake ${name}`}>Wake<//>`}
    <${Act} class=${size} run=${pin} aria-pressed=${row.pinned === true} aria-label=${`${row.pinned ? 'Unpin' : 'Pin'} ${name}`}>${row.pinned ? 'Unpin' : 'Pin'}<//>`;
}

/** What a deployment waits for, or why it is where it is. @param {{row: any}} props */
export const Condition = ({ row }) => html`<span class="small ${row.residency === 'failed' ? 'bad' : row.waits_for ? 'warn' : 'soft'}">${row.waits_for ?? row.reason ?? ''}</span>`;

/** A deployment's residency, and whether it is pinned. @param {{row: any}} props */
export const State = ({ row }) => {
  const isOff = row.enabled === false;
  return html`<span class="row tight"><${Badge} state=${isOff ? 'cold' : row.residency}>${isOff ? 'disabled' : row.residency}<//>${row.pinned && html`<span class="badge plain">pinned</span>`}</span>`;
};

/** @type {import('../ui/table.js').Column[]} */
const COLUMNS = [
  { key: 'name', title: 'Name', head: true, cell: ([name, row]) => html`<span class="row tight"><i class="dot" style=${{ '--seg': `var(--hue-${hue(name)})` }}></i><span class="lines"><${Link} to=${deploymentPath(name)}>${name}<//><span class="small faint regular">${[row.version != null && `v${row.version}`, row.precision, row.engine].filter(Boolean).join(', ')}</span><span class="narrow-only regular"><${State} row=${row} /> <${Condition} row=${row} /></span></span></span>` },
  { key: 'residency', title: 'Residency', wide: true, cell: ([, row]) => html`<${State} row=${row} />` },
  { key: 'why', title: 'Why', wide: true, cell: ([, row]) => html`<${Condition} row=${row} />` },
  { key: 'since', title: 'For', num: true, wide: true, cell: ([, row]) => (row.since ? duration(Math.max(0, Math.floor(now.value - row.since))) : '–') },
  { key: 'requests', title: 'Requests', num: true, wide: true, cell: ([, row]) => html`${row.num_running ?? 0}${row.num_waiting ? html` <span class="warn">+ ${row.num_waiting} wait</span>` : ''}` },
  { key: 'wake', title: 'Wake takes', num: true, wide: true, cell: ([, row]) => duration(row.wake_s) },
  { key: 'actions', title: '', cell: ([name, row]) => html`<span class="actions"><${Moves} name=${name} row=${row} /></span>` },
];

const List = () => {
  const [open, setOpen] = useState(false);
  const rows = Object.entries(deployments.value).sort(([a], [b]) => (a < b ? -1 : 1));
  return html`<${Head} title="Deployments" about="Models that clients can ask for, each with its policy.">
      <button class="primary" onClick=${() => (isKnown.value ? setOpen(true) : say('The server is not there yet.', 'bad'))}>New deployment</button>
    <//>
    <${Live}><${Card} flush title="All deployments" aside=${html`<span class="faint small">${rows.length}</span>`}>
      ${rows.length ? html`<${Table} caption="Deployments" columns=${COLUMNS} rows=${rows} rowKey=${(/** @type {[string, any]} */ [name]) => name} />`
        : html`<${Empty} title="Nothing is deployed yet"><p>Register a model, and it is deployed under its name.</p><${Link} class="button primary" to="/register">Register a model<//><//>`}
    <//><//>
    ${open && html`<${Create} onClose=${() => setOpen(false)} />`}`;
};

/** @param {{rest: string}} props */
export default function Deployments({ rest }) {
  return rest ? html`<${Deployment} key=${rest} name=${rest} />` : html`<${List} />`;
}
