// The operator's playground: any deployment, as the built-in tenant or as one that is chosen.
import { html, useEffect, useState } from '../lib.js';
import { get } from '../api.js';
import { place } from '../router.js';
import { deployments, isKnown, session } from '../store.js';
import { Choice } from '../ui/dialog.js';
import { Card, Empty, Head, Skeleton } from '../ui/parts.js';
import { Play } from '../ui/play.js';

export default function Playground() {
  const [tenants, setTenants] = useState(/** @type {string[]} */ ([]));
  const [tenant, setTenant] = useState('');
  useEffect(() => {
    get('tenants?limit=200').then((rows) => setTenants(rows.map((/** @type {any} */ each) => each.name).filter((/** @type {string} */ each) => each !== 'playground')), () => {});
  }, []);
  const models = Object.entries(deployments.value).filter(([, each]) => each.enabled !== false).map(([name]) => name).sort();
  const { query } = place.value;
  const first = [query.get('a'), query.get('b')].filter((each) => each !== null);
  const more = html`<${Choice} label="Tenant" value=${tenant} onChange=${setTenant} choices=${[['', 'playground (built in)'], ...tenants.map((each) => [each, each])]} hint="Whose class and weight the requests have." />`;
  return html`<${Head} title="Playground" about="Ask one deployment, or two side by side. Counts and times are the server's own." />
    ${!isKnown.value ? html`<${Skeleton} />` : !models.length ? html`<${Card}><${Empty} title="Nothing to ask yet"><p>Register and deploy a model first.</p><//><//>`
      : html`<${Play} models=${models} first=${first} more=${more} server=${session.value?.server ?? ''}
        url=${(/** @type {string} */ kind) => `/api/playground/${kind === 'chat' ? 'chat/completions' : 'completions'}`}
        headers=${() => /** @type {Record<string, string>} */ ({ 'x-mooring-token': session.value?.token ?? '', ...(tenant ? { 'x-mooring-tenant': tenant } : {}) })}
        about=${(/** @type {string} */ model) => deployments.value[model] ?? {}} />`}`;
}
