// Draws /openapi.json: a part for each tag, a fold for each route, a table for what it takes.
'use strict';

const byId = (id) => document.getElementById(id);

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function resolved(schema, all) {
  const name = schema && schema.$ref && schema.$ref.split('/').pop();
  return name ? all[name] || {} : schema || {};
}

function typeOf(schema, all) {
  if (!schema) return '';
  if (schema.$ref) return schema.$ref.split('/').pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(' | ');
  const many = schema.anyOf || schema.oneOf;
  if (many) return many.map((one) => typeOf(one, all)).join(' | ');
  if (schema.type === 'array') return `list of ${typeOf(schema.items, all) || 'anything'}`;
  return schema.format === 'binary' ? 'file' : schema.type || 'anything';
}

function table(schema, all, parent) {
  const properties = Object.entries(schema.properties || {});
  if (!properties.length) return;
  const made = element('table', '', parent);
  const head = element('tr', '', made);
  for (const title of ['key', 'type', 'without it', 'meaning']) element('th', title, head);
  for (const [name, value] of properties) {
    const row = element('tr', '', made);
    element('code', name, element('td', '', row));
    element('td', typeOf(value, all), row);
    const isNeeded = (schema.required || []).includes(name);
    const preset = value.default === undefined ? '' : JSON.stringify(value.default);
    element('td', isNeeded ? 'needed' : preset, row);
    element('td', value.description || resolved(value, all).description || '', row);
  }
}

function route(path, method, told, all, parent) {
  const fold = element('details', '', parent);
  const summary = element('summary', '', fold);
  element('code', `${method.toUpperCase()} ${path}`, summary);
  element('span', (told.description || told.summary || '').split('\n')[0], summary);
  for (const [kind, content] of Object.entries((told.requestBody || {}).content || {})) {
    element('p', kind, fold).className = 'muted';
    table(resolved(content.schema, all), all, fold);
  }
}

async function draw() {
  const key = byId('key').value;
  const answer = await fetch('openapi.json', key ? {headers: {Authorization: `Bearer ${key}`}} : {});
  byId('key-label').hidden = answer.status !== 401 && !key;
  if (!answer.ok) {
    byId('summary').textContent = 'The description needs an API key.';
    return;
  }
  const told = await answer.json();
  byId('summary').textContent = `${told.info.summary} Version ${told.info.version}.`;
  const all = (told.components || {}).schemas || {};
  const parts = {};
  byId('routes').replaceChildren();
  for (const [path, methods] of Object.entries(told.paths)) {
    for (const [method, one] of Object.entries(methods)) {
      const tag = (one.tags || ['Other'])[0];
      if (!parts[tag]) {
        parts[tag] = element('section', '', byId('routes'));
        element('h2', tag, parts[tag]);
      }
      route(path, method, one, all, parts[tag]);
    }
  }
}

byId('key').addEventListener('change', draw);
draw();
