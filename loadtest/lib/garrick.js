// What the scripts share: where the server is, how it is asked, what a good answer looks like, what must be left over.

import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const BASE = env('BASE_URL', 'http://127.0.0.1:8080');
// /metrics is not public behind a proxy: the server's own address goes here. Empty: nothing is read from it.
const METRICS = env('METRICS_URL', BASE);
const HEADERS = { 'Content-Type': 'application/json', ...auth() };

// Until the server has accepted a request: connection, key, quota, tokenising, a place in a lane's queue. It is NOT the
// time to the first token: the head of a stream comes at once, and k6 cannot time events within a body.
export const acceptMs = new Trend('garrick_accept_ms', true);
// The whole of a request for one token: what the first token takes from the outside.
export const firstTokenMs = new Trend('garrick_first_token_ms', true);
// From the head to the end of a stream, divided by its tokens.
export const tokenMs = new Trend('garrick_token_ms', true);
export const tokens = new Counter('garrick_tokens');
export const refused = new Counter('garrick_refused');

export function env(name, fallback) {
  return __ENV[name] === undefined || __ENV[name] === '' ? fallback : __ENV[name];
}

export function number(name, fallback) {
  const value = Number(env(name, fallback));
  if (!Number.isFinite(value)) throw new Error(`${name} must be a number, not '${__ENV[name]}'`);
  return value;
}

// A limit for a time, for thresholds. SLACK widens all of them at once, for slow machines.
export function within(percentile, ms) {
  return `p(${percentile})<${ms * number('SLACK', 1)}`;
}

function auth() {
  const key = env('KEY', '');
  return key === '' ? {} : { Authorization: `Bearer ${key}` };
}

// One of a few thousand small questions, so that the prefix cache is neither useless nor everything.
export function question(i) {
  return `What is ${(i * 7) % 90 + 10} + ${(i * 13) % 90 + 10}?`;
}

export function pick(list) {
  return list[Math.floor(Math.random() * list.length)];
}

export function between(low, high) {
  return low + Math.floor(Math.random() * (high - low + 1));
}

// Asks, and takes the answer apart. `params` are k6's, beside the headers.
export function ask(content, fields = {}, params = {}) {
  const body = { model: env('MODEL', 'default'), messages: [{ role: 'user', content }], ...fields };
  if (body.stream) body.stream_options = { include_usage: true };
  const res = http.post(`${BASE}/v1/chat/completions`, JSON.stringify(body), { headers: HEADERS, ...params });
  const answer = { res, ...(body.stream && res.status === 200 ? readStream(res.body) : readWhole(res)) };
  if (res.status === 200) record(answer, body);
  return answer;
}

function record(answer, body) {
  const { waiting, receiving, duration } = answer.res.timings;
  const produced = answer.usage ? answer.usage.completion_tokens : 0;
  tokens.add(produced);
  if (!body.stream) return;
  acceptMs.add(waiting);
  if (body.max_tokens === 1) firstTokenMs.add(duration);
  else if (produced > 1) tokenMs.add(receiving / produced);
}

function readWhole(res) {
  let body = null;
  try {
    body = res.json();
  } catch {
    return { text: '', error: null, isWell: false };
  }
  const choice = body && body.choices && body.choices[0];
  const isWell = Boolean(choice && choice.finish_reason && body.usage);
  return { text: choice ? choice.message.content : '', usage: body && body.usage, error: body && body.error, isWell };
}

// Server-sent events: ids that count from 0, one line of data each, comments between them, [DONE] at the end.
export function readStream(text) {
  const answer = { text: '', usage: null, error: null, isWell: false };
  let nextId = 0;
  let isInOrder = true;
  let isDone = false;
  let finish = null;
  for (const frame of text.split('\n\n')) {
    if (frame === '' || frame.startsWith(':')) continue;
    const [id, data] = frame.split('\n');
    isInOrder = isInOrder && !isDone && id === `id: ${nextId}` && data !== undefined && data.startsWith('data: ');
    if (!isInOrder) break;
    nextId += 1;
    if (data === 'data: [DONE]') {
      isDone = true;
      continue;
    }
    const chunk = JSON.parse(data.slice(6));
    if (chunk.error) answer.error = chunk.error;
    if (chunk.usage) answer.usage = chunk.usage;
    for (const choice of chunk.choices || []) {
      answer.text += choice.delta.content || '';
      finish = choice.finish_reason || finish;
    }
  }
  answer.isWell = isInOrder && isDone && finish !== null && answer.usage !== null && answer.error === null;
  return answer;
}

// A good answer from the first byte to the last.
export function isComplete(answer) {
  return check(answer, {
    'status is 200': (a) => a.res.status === 200,
    'the answer is whole and in order': (a) => a.isWell,
  });
}

// A good answer, or a refusal that says why and when to come back.
export function isCompleteOrRefused(answer) {
  const { res, error } = answer;
  if (res.status === 200) return isComplete(answer);
  refused.add(1);
  return check(answer, {
    'a refusal is 429 or 503': () => res.status === 429 || res.status === 503,
    'a refusal says why': () => Boolean(error && error.code && error.message && error.request_id),
    'a refusal says when to come back': () => /^[1-9][0-9]*$/.test(res.headers['Retry-After'] || ''),
  });
}

// ── What the server says of itself ───────────────────────────────────────────────────────────────────────────────────

function scrape() {
  return METRICS === '' ? '' : http.get(`${METRICS}/metrics`, { headers: HEADERS, tags: { name: 'metrics' } }).body || '';
}

function samples(text, name) {
  const lines = text.split('\n').filter((line) => line.startsWith(name) && ' {'.includes(line[name.length]));
  return lines.map((line) => ({ labels: line.slice(name.length, line.lastIndexOf(' ')), value: Number(line.split(' ').pop()) }));
}

function sum(text, name, label = '') {
  return samples(text, name).filter((s) => s.labels.includes(label)).reduce((total, s) => total + s.value, 0);
}

// Before a run.
export function setUp() {
  const res = http.get(`${BASE}/health/ready`);
  if (res.status !== 200) throw new Error(`${BASE} is not ready: ${res.status} ${res.body}`);
  return { metrics: scrape() };
}

// After a run: nothing may be left inside, and the server's own times are printed.
export function tearDown(before) {
  if (METRICS === '') return;
  let left = [];
  for (let i = 0; i < 100; i += 1) {
    left = leftovers(scrape());
    if (left.length === 0) break;
    sleep(0.2);
  }
  check(left, { 'nothing is left behind': (l) => l.length === 0 });
  if (left.length > 0) console.error(`left behind: ${left.join(', ')}`);
  report(before.metrics, scrape());
}

function leftovers(text) {
  const gauges = [
    ['garrick_permits_in_use'],
    ['garrick_streams_open'],
    ['garrick_requests_running'],
    ['garrick_requests_waiting'],
    ['garrick_kv_blocks', 'state="held"'],
  ];
  if (!text.includes('garrick_permits_in_use')) return ['no metrics (is METRICS_URL the server itself, and KEY good?)'];
  return gauges.filter(([name, label]) => sum(text, name, label) !== 0).map(([name]) => name);
}

function report(before, after) {
  const grown = (name) => sum(after, name) - sum(before, name);
  const ms = (name, q) => (quantile(before, after, name, q) * 1000).toFixed(1);
  console.log(
    `the server's own count: ${grown('garrick_generated_tokens_total')} tokens in ${grown('garrick_steps_total')} steps, ` +
      `${grown('garrick_preemptions_total')} preemptions; first token p50 ${ms('garrick_ttft_seconds', 0.5)} ms, ` +
      `p99 ${ms('garrick_ttft_seconds', 0.99)} ms; between tokens p50 ${ms('garrick_itl_seconds', 0.5)} ms, ` +
      `p99 ${ms('garrick_itl_seconds', 0.99)} ms`,
  );
}

// As Prometheus does it: linear within a bucket, the last finite bound above all of them.
function quantile(before, after, name, q) {
  const bound = (labels) => Number(labels.match(/le="([^"]+)"/)[1].replace('+Inf', 'Infinity'));
  const earlier = {};
  samples(before, `${name}_bucket`).forEach((s) => (earlier[s.labels] = s.value));
  const buckets = samples(after, `${name}_bucket`)
    .map((s) => ({ le: bound(s.labels), count: s.value - (earlier[s.labels] || 0) }))
    .sort((a, b) => a.le - b.le);
  const total = buckets.length > 0 ? buckets[buckets.length - 1].count : 0;
  if (total === 0) return NaN;
  let lower = { le: 0, count: 0 };
  for (const bucket of buckets) {
    if (bucket.count >= q * total) {
      if (bucket.le === Infinity) return lower.le;
      return lower.le + ((bucket.le - lower.le) * (q * total - lower.count)) / (bucket.count - lower.count);
    }
    lower = bucket;
  }
  return NaN;
}
