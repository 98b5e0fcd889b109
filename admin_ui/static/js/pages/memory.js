// The memory map: every device's bytes by owner, promised and used, and the host tier beside it.
import { Fragment, html } from '../lib.js';
import { mib, percent, size } from '../format.js';
import { deploymentPath, Link } from '../router.js';
import { devices, host, live, server } from '../store.js';
import { KV_PARTS, MemoryBar, MemoryLegend, colourOf, nameOf, ordered } from '../ui/membar.js';
import { Ago, Badge, Card, Empty, Head, Live, Meter, hue } from '../ui/parts.js';

/** @param {{id: string, segment: any, budget: number}} props */
function Rows({ id, segment, budget }) {
  const parts = segment.kind === 'kv' ? KV_PARTS.filter(([key]) => segment[key] != null) : [];
  const name = nameOf(segment);
  const owner = segment.deployment && segment.kind === 'weights' ? html`<${Link} to=${deploymentPath(segment.deployment)}>${name}<//>` : name;
  return html`<${Fragment}>
    <tr class=${parts.length ? 'has-sub' : ''} data-segment=${id} data-promised-bytes=${segment.promised_bytes} data-used-bytes=${segment.used_bytes ?? ''}>
      <th scope="row"><span class="row tight"><i class="dot" style=${{ '--seg': colourOf(segment) }}></i><span>${owner}</span></span></th>
      <td class="soft wide-only">${segment.kind === 'weights' ? 'weights' : segment.kind === 'kv' ? segment.worker : segment.kind === 'free' && segment.used_bytes ? 'kept ready for what grows' : ''}</td>
      <td class="num">${mib(segment.promised_bytes)}</td>
      <td class="num">${segment.used_bytes == null ? html`<span class="faint">–</span>` : mib(segment.used_bytes)}</td>
      <td class="num soft wide-only">${percent(segment.promised_bytes / budget)}</td>
    </tr>
    ${parts.map(([key, text, colour], index) => html`<tr key=${key} class=${index === parts.length - 1 ? 'sub sub-end' : 'sub'} data-part=${`${id} ${key}`} data-used-bytes=${segment[key]}>
      <th scope="row"><span class="row tight"><i class="dot" style=${{ background: `var(${colour})` }}></i>${text}</span></th>
      <td class="wide-only"></td><td></td><td class="num">${mib(segment[key])}</td><td class="wide-only"></td>
    </tr>`)}
  <//>`;
}

/** @param {{name: string, device: any}} props */
function Device({ name, device }) {
  const rows = ordered(device.segments);
  const used = rows.reduce((sum, [, each]) => sum + (each.used_bytes ?? 0), 0);
  const promised = rows.filter(([, each]) => each.kind !== 'free').reduce((sum, [, each]) => sum + each.promised_bytes, 0);
  const { memory } = device;
  const own = memory && html`<span>By its own account: ${size(memory.used_bytes)} used of ${size(memory.total_bytes)}${memory.others_bytes ? `, ${size(memory.others_bytes)} of it by other processes` : ''}</span>`;
  return html`<${Card} flush title=${name} data-device=${name}
    aside=${html`<span class="faint small">Sampled <${Ago} at=${device.sampled_at} /></span>${device.utilization != null && html`<span class="badge plain">${percent(device.utilization)} busy</span>`}`}
    foot=${html`<${MemoryLegend} />${own}`}>
    <div class="pad stack">
      <div class="row spread"><span><b>${size(promised)}</b> promised, <b>${size(used)}</b> used <span class="soft">of ${size(device.budget_bytes)}</span></span></div>
      <${MemoryBar} name=${name} device=${device} />
    </div>
    <div class="scroll" tabindex="0" role="region" aria-label=${`Owners of the memory of ${name}`}><table>
      <caption class="visually-hidden">Owners of the memory of ${name}, in MiB</caption>
      <thead><tr><th scope="col">Owner</th><th scope="col" class="wide-only">What</th><th scope="col" class="num">Promised, MiB</th><th scope="col" class="num">Used, MiB</th><th scope="col" class="num wide-only">Share</th></tr></thead>
      <tbody>${rows.map(([id, segment]) => html`<${Rows} key=${id} id=${id} segment=${segment} budget=${device.budget_bytes} />`)}</tbody>
      <tfoot><tr><th scope="row">Budget</th><td class="wide-only"></td><td class="num">${mib(device.budget_bytes)}</td><td class="num">${mib(used)}</td><td class="wide-only"></td></tr></tfoot>
    </table></div>
  <//>`;
}

/** What a state of a host copy means. @type {Record<string, string>} */
const COPY_STATES = { reading: 'being read', held: 'in use', kept: 'kept' };

function Host() {
  const tier = host.value;
  const copies = Object.entries(tier.copies ?? {}).sort(([, a], [, b]) => b.bytes - a.bytes);
  const share = tier.budget_bytes ? tier.used_bytes / tier.budget_bytes : 0;
  return html`<${Card} flush title="Host tier" aside=${html`<span class="faint small">${size(tier.used_bytes)} of ${size(tier.budget_bytes)}</span>`}
    foot="Packed weights in the server's memory, from which sleeping models wake.">
    <div class="pad"><${Meter} share=${share} label="Host memory that copies take" /></div>
    ${copies.length === 0
      ? html`<${Empty} title="No copies"><p>No weights are kept in host memory.</p><//>`
      : html`<div class="scroll" tabindex="0" role="region" aria-label="Host copies"><table><caption class="visually-hidden">Host copies</caption>
        <thead><tr><th scope="col">Copy of</th><th scope="col">State</th><th scope="col" class="num">MiB</th></tr></thead>
        <tbody>${copies.map(([key, copy]) => {
          const names = copy.deployments?.length ? copy.deployments.join(', ') : key.slice(0, 16);
          return html`<tr key=${key}><th scope="row"><span class="row tight"><i class="dot" style=${{ '--seg': `var(--hue-${hue(copy.deployments?.[0] ?? key)})` }}></i><span class="break">${names}</span></span></th>
            <td class="soft nowrap">${COPY_STATES[copy.state] ?? copy.state}</td><td class="num">${mib(copy.bytes)}</td></tr>`;
        })}</tbody></table></div>`}
  <//>`;
}

export default function Memory() {
  const found = Object.entries(devices.value);
  const mismatches = server.value.ledger_mismatches;
  return html`<${Head} title="Memory map" about="Who holds each byte of each device: what the ledger has promised, and what the workers' own books say is used.">
      ${mismatches > 0 ? html`<${Badge} state="bad">${mismatches} ledger mismatches<//>` : html`<${Badge} state="good">Ledger and workers agree<//>`}
    <//>
    <${Live}><div class="grid-main" data-seq=${live.value.seq}>
      <div class="stack">
        ${found.map(([name, device]) => html`<${Device} key=${name} name=${name} device=${device} />`)}
        ${found.length === 0 && html`<${Card}><${Empty} title="No devices"><p>The server has told of no device yet.</p><//><//>`}
      </div>
      <${Host} />
    </div><//>`;
}
