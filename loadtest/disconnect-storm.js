// Clients that ask for long answers and leave, again and again, while a few others stay: those who stay get exactly what
// they get on a quiet server, and nothing stays of those who left.
//
// LEAVERS (1000 in all), VUS (50 at once), MAX_STAY_MS (500), DURATION (1m, of those who stay), MAX_TOKENS (128)
//
// k6 leaves by its request timeout, which closes the connection: with a FIN, or a RST when something was left unread. It
// warns of each one; `--log-output none` silences that.

import http from 'k6/http';
import { check } from 'k6';
import { Counter } from 'k6/metrics';

import { ask, between, env, isComplete, number, question, setUp, tearDown } from './lib/garrick.js';

const LONG = number('LEAVER_TOKENS', 1500);
const left = new Counter('garrick_left');

export const options = {
  scenarios: {
    leave: {
      executor: 'shared-iterations', vus: number('VUS', 50), iterations: number('LEAVERS', 1000), maxDuration: '10m',
      exec: 'leave',
    },
    stay: { executor: 'constant-vus', vus: 2, duration: env('DURATION', '1m'), gracefulStop: '60s', exec: 'stay' },
  },
  thresholds: {
    checks: ['rate==1'],
    'http_req_failed{scenario:stay}': ['rate==0'],
    garrick_left: ['count>0'],
  },
};

function longAnswer() {
  return ask(question(1), { stream: true, max_tokens: number('MAX_TOKENS', 128), ignore_eos: true, temperature: 0, seed: 1 });
}

export function setup() {
  const data = setUp();
  const answer = longAnswer();
  if (!isComplete(answer)) throw new Error(`no answer before the storm: ${answer.res.status} ${answer.res.body}`);
  return { ...data, expected: answer.text };
}

export function leave() {
  const stay = between(1, number('MAX_STAY_MS', 500));
  const fields = { stream: Math.random() < 0.8, n: between(1, 2), max_tokens: LONG, ignore_eos: true };
  const params = { timeout: `${stay}ms`, responseCallback: http.expectedStatuses({ min: 0, max: 599 }) };
  const { res } = ask(question(between(0, 5000)), fields, params);
  if (res.status === 0) left.add(1);
  check(res, { 'left, or was answered': (r) => r.status === 0 || r.status === 200 || r.status === 429 || r.status === 503 });
}

export function stay(data) {
  const answer = longAnswer();
  if (isComplete(answer)) check(answer, { 'the same text as on a quiet server': (a) => a.text === data.expected });
}

export const teardown = tearDown;
