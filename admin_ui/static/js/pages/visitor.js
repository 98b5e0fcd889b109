// The visitor's playground: with an API key of one's own, and nothing of the operator's.
import { html, useEffect, useState } from '../lib.js';
import { errorOf } from '../api.js';
import { Empty, Problem, Skeleton } from '../ui/parts.js';
import { Field } from '../ui/dialog.js';
import { Play } from '../ui/play.js';
import { ThemeSwitch } from '../ui/shell.js';
import { Toasts } from '../ui/toast.js';

const KEPT = 'mooring-visitor-key'; // in this tab alone, and gone with it
const logo = new URL('../../logo.svg', import.meta.url).pathname;

/** @param {string} key @returns {Record<string, string>} */
const bearer = (key) => (key ? { authorization: `Bearer ${key}` } : {});

/** @param {{error: string, onKey: (key: string) => void}} props */
function AskKey({ error, onKey }) {
  const [key, setKey] = useState('');
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    onKey(key.trim());
  };
  return html`<main class="login"><form class="card" onSubmit=${submit}>
    <div class="row spread"><h1 class="brand"><img src=${logo} alt="" />Mooring playground</h1><${ThemeSwitch} /></div>
    <${Field} label="API key" error=${error || null} hint="Yours, from whoever runs this server. It stays in this tab.">
      ${(/** @type {string} */ id, /** @type {any} */ attributes) => html`<input id=${id} type="password" autocomplete="off" value=${key} ...${attributes} onInput=${(/** @type {any} */ event) => setKey(event.target.value)} />`}
    <//>
    <button class="primary" type="submit" disabled=${!key.trim()}>Go on</button>
  </form></main>`;
}

export function Visitor() {
  const [key, setKey] = useState(() => sessionStorage.getItem(KEPT) ?? '');
  const [models, setModels] = useState(/** @type {string[] | null} */ (null));
  const [refused, setRefused] = useState(false);
  const [error, setError] = useState(/** @type {any} */ (null));
  const [round, setRound] = useState(0);
  useEffect(() => {
    document.title = 'Mooring playground';
    let gone = false;
    setError(null);
    fetch('/v1/models', { headers: bearer(key) }).then(async (response) => {
      if (gone) return;
      if (response.status === 401) {
        setRefused(true);
        return;
      }
      if (!response.ok) throw await errorOf(response);
      const found = await response.json();
      setModels(found.data.map((/** @type {any} */ each) => each.id));
      setRefused(false);
    }).catch((failed) => { if (!gone) setError(failed); });
    return () => { gone = true; };
  }, [key, round]);
  const take = (/** @type {string} */ given) => {
    sessionStorage.setItem(KEPT, given);
    setKey(given);
    setRound((value) => value + 1);
  };
  const leave = () => {
    sessionStorage.removeItem(KEPT);
    setModels(null);
    setKey('');
  };
  if (refused) return html`<${AskKey} error=${key ? 'The server does not take this key.' : ''} onKey=${take} />`;
  return html`<header class="topbar visitor"><span class="brand"><img src=${logo} alt="" />Mooring playground</span><${ThemeSwitch} />${key && html`<button class="plain" onClick=${leave}>Leave</button>`}</header>
    <main id="main"><div class="page"><h1 class="visually-hidden">Playground</h1>
      ${error ? html`<${Problem} error=${error} retry=${() => setRound((value) => value + 1)} />` : !models ? html`<${Skeleton} />` : !models.length ? html`<${Empty} title="No model is served at the moment" />`
        : html`<${Play} models=${models} first=${[]} server=${location.origin} url=${(/** @type {string} */ kind) => (kind === 'chat' ? '/v1/chat/completions' : '/v1/completions')} headers=${() => bearer(key)} about=${() => ({})} />`}
    </div></main><${Toasts} />`;
}
