// Registering a model: what it would take before the button is pressed, and each step with its progress after.
import { html, useEffect, useState } from '../lib.js';
import { get, post } from '../api.js';
import { percent, size, unix } from '../format.js';
import { deploymentPath, Link } from '../router.js';
import { deployments, registrations } from '../store.js';
import { Check, TextField, tried } from '../ui/dialog.js';
import { Fit, useFit } from '../ui/fit.js';
import { Act, Badge, Card, Empty, Head, Meter } from '../ui/parts.js';
import { changesOf, formOf, PolicyFields } from '../ui/policy.js';

const BLANK = formOf({ priority: 0, min_replicas: 0, max_replicas: 1 });

/** A name for a model, from where it comes. @param {string} source */
function guessed(source) {
  const last = source.replace(/^hf:\/\//, '').replace(/@.*$/, '').replace(/\/+$/, '').split('/').pop() ?? '';
  return last.replace(/\.gguf$/i, '').toLowerCase().replace(/[^a-z0-9._-]+/g, '-').replace(/^[^a-z0-9]+/, '');
}

/** @param {{stage: any, state: string}} props */
function Stage({ stage, state }) {
  const share = stage.total_bytes ? stage.done_bytes / stage.total_bytes : stage.state === 'done' ? 1 : 0;
  const kind = stage.state === 'done' ? 'good' : stage.state === 'failed' || state === 'failed' ? 'bad' : '';
  const told = stage.state === 'done' ? 'done' : stage.total_bytes ? `${size(stage.done_bytes)} of ${size(stage.total_bytes)}` : stage.state === 'running' ? 'under way' : 'to come';
  return html`<div class="stage"><span>${stage.name}</span><${Meter} share=${share} kind=${kind} label=${`${stage.name}: ${percent(share)}`} /><span class="num">${told}</span></div>`;
}

/** @param {{id: string, row: any}} props */
function Registration({ id, row }) {
  const stages = row.stages ?? [{ name: row.stage || 'begin', state: row.state === 'done' ? 'done' : 'running', done_bytes: row.done_bytes, total_bytes: row.total_bytes }];
  const isDeployed = row.name in deployments.value;
  const act = (/** @type {string} */ what) => () => tried(() => post(`registrations/${id}/${what}`, {}));
  return html`<${Card} title=${row.name} data-registration=${row.name} aside=${html`<${Badge} state=${row.state} />
      ${row.state === 'running' && html`<${Act} class="small danger" run=${act('cancel')}>Cancel<//>`}
      ${['failed', 'cancelled', 'interrupted'].includes(row.state) && html`<${Act} class="small" run=${act('resume')}>Resume<//>`}
      ${row.state === 'done' && isDeployed && html`<${Link} class="button small" to=${deploymentPath(row.name)}>Open<//>`}`}>
    <div class="stack">
      <p class="soft small break mono">${row.source}</p>
      ${row.state !== 'done' && html`<div class="stages">${stages.map((/** @type {any} */ stage) => html`<${Stage} key=${stage.name} stage=${stage} state=${row.state} />`)}</div>`}
      ${row.error && html`<p class="error-text">${row.error}</p>`}
    </div>
  <//>`;
}

function Progress() {
  const [known, setKnown] = useState(/** @type {Record<string, any>} */ ({}));
  useEffect(() => {
    get('registrations?limit=50').then((rows) => setKnown(Object.fromEntries(rows.map((/** @type {any} */ each) => [each.id, each]))), () => {});
  }, []);
  const all = Object.entries({ ...known, ...registrations.value });
  const place = (/** @type {any} */ row) => (row.state === 'running' ? 0 : row.state === 'done' ? 2 : 1);
  const begun = (/** @type {any} */ row) => row.created_at ?? unix(row.created);
  all.sort(([, a], [, b]) => place(a) - place(b) || begun(b) - begun(a));
  if (!all.length) return html`<${Card} title="Registrations"><${Empty} title="None yet"><p>Each step of a registration shows here, and goes on if you leave the page.</p><//><//>`;
  return html`${all.map(([id, row]) => html`<${Registration} key=${id} id=${id} row=${row} />`)}`;
}

export default function Register() {
  const [source, setSource] = useState('');
  const [name, setName] = useState('');
  const [deploy, setDeploy] = useState(true);
  const [form, setForm] = useState(BLANK);
  const [error, setError] = useState(/** @type {any} */ (null));
  const { changes, errors } = changesOf(BLANK, form);
  const isSound = Object.keys(errors).length === 0;
  const whence = source.trim();
  const fit = useFit(whence.length > 2 && isSound ? { source: whence, policy: changes } : null);
  const chosen = name || guessed(whence);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setError(null);
    try {
      await post('models', { name: chosen, source: whence, deploy, policy: changes });
      setSource('');
      setName('');
      setForm(BLANK);
    } catch (failed) {
      setError(failed);
    }
  };
  const exists = chosen in deployments.value;
  return html`<${Head} title="Register a model" about="From Hugging Face's hub, a folder or a GGUF file on the server's machine." />
    <div class="grid-main">
      <form onSubmit=${submit} class="stack" novalidate>
        <${Card} title="Model">
          <div class="stack">
            <${TextField} label="Source" value=${source} onInput=${setSource} placeholder="hf://org/name, /path/to/folder or /path/to/file.gguf" error=${error?.param === 'source' ? error.message : null} name="source" />
            <${TextField} label="Name" value=${name} onInput=${setName} placeholder=${guessed(whence) || 'what clients put in "model"'} error=${error?.param === 'name' ? error.message : null} name="name"
              hint=${exists ? 'A deployment has this name: it moves to the new version and keeps its policy.' : 'What clients put in "model".'} />
            <${Check} label="Deploy it under the same name" checked=${deploy} onChange=${setDeploy} />
            ${deploy && html`<details><summary>Policy</summary><${PolicyFields} form=${form} onChange=${setForm} errors=${errors} /></details>`}
            ${error && !['source', 'name'].includes(error.param) && html`<p class="error-text" role="alert">${error.message}</p>`}
            <div class="row"><button class="primary" type="submit" disabled=${!whence || !chosen || !isSound}>Register ${chosen}</button></div>
          </div>
        <//>
        <${Card} title="Would it fit?"><${Fit} fit=${fit} empty="Name a source to see what it takes on each device, and who would have to sleep for it." /><//>
      </form>
      <div class="stack"><${Progress} /></div>
    </div>`;
}
