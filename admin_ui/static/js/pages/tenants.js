// Tenants: the list, and one tenant with its keys.
import { html, useEffect, useState } from '../lib.js';
import { get, patch, post, remove } from '../api.js';
import { counted, dayTime, number } from '../format.js';
import { go, Link, tenantPath } from '../router.js';
import { say } from '../store.js';
import { Choice, Copy, Dialog, FormDialog, TextField } from '../ui/dialog.js';
import { Badge, Card, Empty, Head, Problem, Skeleton } from '../ui/parts.js';
import { Paged, Table, usePages, useRested } from '../ui/table.js';

const PAGE = 50;

/** @type {import('../ui/table.js').Column[]} */
const TENANTS = [
  { key: 'name', title: 'Tenant', head: true, cell: (row) => html`<${Link} to=${tenantPath(row.name)}>${row.name}<//>` },
  { key: 'class', title: 'SLO class', cell: (row) => row.slo_class ?? html`<span class="faint">best effort</span>` },
  { key: 'weight', title: 'Weight', num: true, cell: (row) => number(row.weight) },
  { key: 'keys', title: 'Keys', num: true, cell: (row) => number(row.keys) },
  { key: 'created', title: 'Since', wide: true, cell: (row) => html`<span class="soft">${dayTime(row.created)}</span>` },
];

/** The SLO classes' names, for a choice. @returns {[string, string][]} */
function useClasses() {
  const [classes, setClasses] = useState(/** @type {[string, string][]} */ ([['', 'Best effort']]));
  useEffect(() => {
    get('slo-classes').then((rows) => setClasses([['', 'Best effort'], ...rows.map((/** @type {any} */ each) => [each.name, each.name])]), () => {});
  }, []);
  return classes;
}

/** @param {{onClose: () => void}} props */
function CreateTenant({ onClose }) {
  const [name, setName] = useState('');
  const [weight, setWeight] = useState('1');
  const [sloClass, setSloClass] = useState('');
  const classes = useClasses();
  const run = async () => {
    await post('tenants', { name: name.trim(), weight: Number(weight) });
    if (sloClass) await patch(`tenants/${encodeURIComponent(name.trim())}`, { slo_class: sloClass });
    go(tenantPath(name.trim()));
  };
  return html`<${FormDialog} title="New tenant" action="Create" done="Created." onClose=${onClose} run=${run}>${(/** @type {any} */ error) => html`
    <${TextField} label="Name" name="name" value=${name} onInput=${setName} error=${error?.param === 'name' ? error.message : null} />
    <div class="fields">
      <${Choice} label="SLO class" value=${sloClass} onChange=${setSloClass} choices=${classes} />
      <${TextField} label="Weight" value=${weight} onInput=${setWeight} inputmode="decimal" hint="Its share of a device, relative to others of its priority." />
    </div>`}<//>`;
}

function List() {
  const [search, setSearch] = useState('');
  const [open, setOpen] = useState(false);
  const pages = usePages('tenants', { limit: PAGE, search: useRested(search) });
  return html`<${Head} title="Tenants and keys" about="Who is served, what they are promised, and the keys that they come with.">
      <button class="primary" onClick=${() => setOpen(true)}>New tenant</button>
    <//>
    <${Card} flush title="Tenants" aside=${html`<input class="search" type="search" aria-label="Search tenants by the beginning of their name" placeholder="Search by name" value=${search} onInput=${(/** @type {any} */ event) => setSearch(event.target.value)} />`}>
      <${Paged} pages=${pages} empty=${html`<${Empty} title=${search ? 'No tenant begins so' : 'No tenants yet'}><p>${search ? 'Names are searched by their beginning.' : 'On loopback, requests need no key. Make a tenant to give somebody one.'}</p><//>`}>
        <${Table} caption="Tenants" columns=${TENANTS} rows=${pages.rows ?? []} rowKey=${(/** @type {any} */ row) => row.name} />
      <//>
    <//>
    ${open && html`<${CreateTenant} onClose=${() => setOpen(false)} />`}`;
}

/** @param {{made: any, onClose: () => void}} props */
const NewKey = ({ made, onClose }) => html`<${Dialog} title="The new key" onClose=${onClose} foot=${html`<button class="primary" onClick=${onClose}>I have it</button>`}>
  <p>This is the only time that it is shown. Whoever has it can send requests as ${made.tenant}.</p>
  <div class="secret"><code data-new-key>${made.key}</code><${Copy} text=${made.key} /></div>
<//>`;

/** @param {{tenant: string, onClose: () => void, onMade: (made: any) => void}} props */
function CreateKey({ tenant, onClose, onMade }) {
  const [name, setName] = useState('');
  const run = async () => {
    const made = await post(`tenants/${encodeURIComponent(tenant)}/keys`, { name: name.trim() });
    onMade(made);
  };
  return html`<${FormDialog} title=${`New key of ${tenant}`} action="Make the key" onClose=${onClose} run=${run}>
    ${() => html`<${TextField} label="What it is for" value=${name} onInput=${setName} hint="So that you know later which one to revoke." />`}
  <//>`;
}

/** @param {{tenant: string, row: any, onClose: () => void, onDone: () => void}} props */
const Revoke = ({ tenant, row, onClose, onDone }) => html`<${FormDialog} title="Revoke this key?" action="Revoke" kind="danger" done="Revoked." onClose=${onClose}
  run=${async () => { await remove(`tenants/${encodeURIComponent(tenant)}/keys/${encodeURIComponent(row.prefix)}`); onDone(); }}>
  ${() => html`<p>Requests with <code>${row.prefix}…</code> ${row.name ? `(${row.name}) ` : ''}are refused from then on, everywhere within a few seconds. A key cannot be put in force again.</p>`}
<//>`;

/** @param {{tenant: any, onClose: () => void, onDone: () => void}} props */
function EditTenant({ tenant, onClose, onDone }) {
  const [sloClass, setSloClass] = useState(tenant.slo_class ?? '');
  const [weight, setWeight] = useState(String(tenant.weight));
  const [allowed, setAllowed] = useState(tenant.allowed_slo_classes.join(', '));
  const classes = useClasses();
  const run = async () => {
    const names = allowed.split(',').map((/** @type {string} */ each) => each.trim()).filter(Boolean);
    await patch(`tenants/${encodeURIComponent(tenant.name)}`, { slo_class: sloClass || null, weight: Number(weight), allowed_slo_classes: names });
    onDone();
  };
  return html`<${FormDialog} title=${`Change ${tenant.name}`} action="Save" done="Saved." onClose=${onClose} run=${run}>${() => html`
    <div class="fields">
      <${Choice} label="SLO class" value=${sloClass} onChange=${setSloClass} choices=${classes} />
      <${TextField} label="Weight" value=${weight} onInput=${setWeight} inputmode="decimal" />
    </div>
    <${TextField} label="Classes that its requests may name beside" value=${allowed} onInput=${setAllowed} placeholder="None" hint="Names, with commas between them." />`}<//>`;
}

/** @param {{name: string}} props */
function Tenant({ name }) {
  const [tenant, setTenant] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [search, setSearch] = useState('');
  const [open, setOpen] = useState(/** @type {any} */ (null));
  const pages = usePages(`tenants/${encodeURIComponent(name)}/keys`, { limit: PAGE, search: useRested(search) });
  const load = () => {
    get(`tenants?search=${encodeURIComponent(name)}&limit=50`).then((rows) => {
      const found = rows.find((/** @type {any} */ each) => each.name === name);
      if (found) setTenant(found);
      else setError(new Error(`There is no tenant ${name}.`));
    }, setError);
  };
  useEffect(load, [name]);
  const close = () => setOpen(null);
  const reload = () => {
    load();
    pages.reload();
  };
  const crumb = html`<${Link} to="/tenants">Tenants<//>`;
  if (error) return html`<${Head} title=${name} crumb=${crumb} /><${Problem} error=${error} />`;
  const columns = [
    { key: 'prefix', title: 'Begins with', head: true, cell: (/** @type {any} */ row) => html`<code>${row.prefix}…</code>` },
    { key: 'name', title: 'For', cell: (/** @type {any} */ row) => row.name || html`<span class="faint">not said</span>` },
    { key: 'created', title: 'Made', wide: true, cell: (/** @type {any} */ row) => html`<span class="soft">${dayTime(row.created)}</span>` },
    { key: 'state', title: 'State', cell: (/** @type {any} */ row) => (row.revoked ? html`<${Badge} state="cold">revoked<//>` : html`<${Badge} state="good">in force<//>`) },
    { key: 'actions', title: '', cell: (/** @type {any} */ row) => html`<span class="actions">${!row.revoked && html`<button class="small danger" aria-label=${`Revoke ${row.prefix}`} onClick=${() => setOpen({ what: 'revoke', row })}>Revoke</button>`}</span>` },
  ];
  return html`<${Head} title=${name} crumb=${crumb} about=${tenant && `${tenant.slo_class ?? 'Best effort'}, weight ${number(tenant.weight)}, ${counted(tenant.keys, 'key')} in force`}>
      <button onClick=${() => setOpen({ what: 'edit' })} disabled=${!tenant}>Change</button>
      <button class="danger" onClick=${() => setOpen({ what: 'delete' })}>Delete</button>
      <button class="primary" onClick=${() => setOpen({ what: 'key' })}>New key</button>
    <//>
    ${!tenant ? html`<${Skeleton} />` : html`<${Card} flush title="Keys" aside=${html`<input class="search" type="search" aria-label="Search keys by the beginning of their name" placeholder="Search by name" value=${search} onInput=${(/** @type {any} */ event) => setSearch(event.target.value)} />`}>
      <${Paged} pages=${pages} empty=${html`<${Empty} title=${search ? 'No key begins so' : 'No keys yet'}><p>A key is shown once, when it is made.</p><//>`}>
        <${Table} caption="Keys" columns=${columns} rows=${pages.rows ?? []} rowKey=${(/** @type {any} */ row) => row.prefix} />
      <//>
    <//>`}
    ${open?.what === 'key' && html`<${CreateKey} tenant=${name} onClose=${close} onMade=${(/** @type {any} */ made) => { setTimeout(() => setOpen({ what: 'made', made })); reload(); }} />`}
    ${open?.what === 'made' && html`<${NewKey} made=${open.made} onClose=${() => { close(); say('The key is in force.'); }} />`}
    ${open?.what === 'revoke' && html`<${Revoke} tenant=${name} row=${open.row} onClose=${close} onDone=${reload} />`}
    ${open?.what === 'edit' && html`<${EditTenant} tenant=${tenant} onClose=${close} onDone=${reload} />`}
    ${open?.what === 'delete' && html`<${FormDialog} title=${`Delete ${name}?`} action="Delete" kind="danger" done=${`${name} is deleted.`} onClose=${close}
      run=${async () => { await remove(`tenants/${encodeURIComponent(name)}`); go('/tenants', true); }}>${() => html`<p>A tenant with keys in force is not deleted: revoke them first.</p>`}<//>`}`;
}

/** @param {{rest: string}} props */
export default function Tenants({ rest }) {
  return rest ? html`<${Tenant} key=${rest} name=${rest} />` : html`<${List} />`;
}
