// Hours of ordinary use, with people who read, think, and sometimes leave: the last quarter must be as good as the first.
//
// VUS (16), DURATION (4h), THINK_S (2), MAX_TOKENS (96)
//
// Beside it, watch the memory and the open files of the server; both must level off within minutes.

import http from 'k6/http';
import { sleep } from 'k6';
import exec from 'k6/execution';

import { ask, between, env, isComplete, number, question, setUp, tearDown, within } from './lib/garrick.js';

const QUARTERS = ['first', 'second', 'third', 'last'];

export const options = {
  scenarios: { use: { executor: 'constant-vus', vus: number('VUS', 16), duration: env('DURATION', '4h'), gracefulStop: '60s' } },
  thresholds: {
    checks: ['rate==1'],
    'http_req_failed{leaves:no}': ['rate==0'],
    ...Object.fromEntries(
      ['first', 'last'].flatMap((quarter) => [
        [`garrick_accept_ms{quarter:${quarter}}`, [within(95, 200)]],
        [`garrick_token_ms{quarter:${quarter}}`, [within(95, 100)]],
        [`garrick_tokens{quarter:${quarter}}`, ['count>0']],
      ]),
    ),
  },
};

export default function use() {
  const quarter = QUARTERS[Math.min(3, Math.floor(exec.scenario.progress * 4))];
  exec.vu.metrics.tags.quarter = quarter;
  const leaves = Math.random() < 0.1;
  const fields = { stream: Math.random() < 0.8, max_tokens: number('MAX_TOKENS', 96), ignore_eos: true };
  const tags = { leaves: leaves ? 'yes' : 'no' };
  if (leaves) {
    const responseCallback = http.expectedStatuses({ min: 0, max: 599 });
    ask(question(between(0, 5000)), fields, { tags, responseCallback, timeout: `${between(1, 300)}ms` });
  } else {
    isComplete(ask(question(between(0, 5000)), fields, { tags }));
  }
  sleep(Math.random() * 2 * number('THINK_S', 2));
}

export const setup = setUp;
export const teardown = tearDown;
