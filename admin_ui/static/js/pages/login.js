// The log-in: with the admin key, or by a one-time link.
import { html, useEffect, useRef, useState } from '../lib.js';
import { ApiError, send } from '../api.js';
import { follow } from '../live.js';
import { session } from '../store.js';
import { Field } from '../ui/dialog.js';
import { ThemeSwitch } from '../ui/shell.js';

const LINK = /^#link=([\w-]+)$/;
let refused = '';

/** @param {{key: string} | {link: string}} given */
async function logIn(given) {
  session.value = await (await send('POST', '/login', given)).json();
}

/** Logs in by the one-time link in the address, if there is one, and takes it out of there. */
export async function takeLink() {
  const found = LINK.exec(location.hash);
  if (!found) return;
  history.replaceState(null, '', location.pathname + location.search);
  try {
    await logIn({ link: found[1] });
  } catch (failed) {
    refused = /** @type {Error} */ (failed).message;
  }
}

export function Login() {
  const [key, setKey] = useState('');
  const [error, setError] = useState(refused);
  const [busy, setBusy] = useState(false);
  const field = useRef(/** @type {any} */ (null));
  useEffect(() => {
    document.title = 'Log in · Mooring';
    field.current.querySelector('input').focus();
  }, []);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError('');
    try {
      await logIn({ key: key.trim() });
      follow();
    } catch (failed) {
      const { code, message } = /** @type {ApiError} */ (failed);
      setError(code === 'invalid_api_key' ? 'That is not the admin key of this server.' : message);
      setBusy(false);
    }
  };
  return html`<main class="login"><form class="card" onSubmit=${submit} ref=${field}>
    <div class="row spread"><h1 class="brand"><img src=${new URL('../../logo.svg', import.meta.url).pathname} alt="" />Mooring</h1><${ThemeSwitch} /></div>
    <input class="visually-hidden" type="text" name="username" autocomplete="username" value="admin" tabindex="-1" aria-hidden="true" readonly />
    <${Field} label="Admin key" error=${error || null} hint=${html`It is in <code>admin.key</code> in the server's data folder. On that machine, <code>mooring ui</code> logs you in without it.`}>
      ${(/** @type {string} */ id, /** @type {any} */ attributes) => html`<input id=${id} type="password" name="key" autocomplete="current-password" required value=${key} ...${attributes}
        onInput=${(/** @type {any} */ event) => setKey(event.target.value)} />`}
    <//>
    <button class="primary" type="submit" disabled=${busy || !key.trim()} aria-busy=${busy}>${busy ? 'Checking …' : 'Log in'}</button>
  </form></main>`;
}
