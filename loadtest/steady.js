// A steady number of chats, one after another: what the server gives when nothing is unusual.
//
// VUS (8), DURATION (1m), MAX_TOKENS (64)

import { sleep } from 'k6';
import exec from 'k6/execution';

import { ask, env, isComplete, number, question, setUp, tearDown, within } from './lib/garrick.js';

const DURATION = env('DURATION', '1m');

export const options = {
  scenarios: {
    chats: { executor: 'constant-vus', vus: number('VUS', 8), duration: DURATION, exec: 'chat' },
    // Asks for one token now and then: the only way for k6 to time a first token from the outside.
    first_token: { executor: 'constant-vus', vus: 1, duration: DURATION, exec: 'firstToken' },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    garrick_tokens: ['count>0'],
    garrick_accept_ms: [within(95, 200), within(99, 1000)],
    garrick_first_token_ms: [within(95, 1000)],
    garrick_token_ms: [within(95, 100)],
  },
};

export function chat() {
  const fields = { stream: true, max_tokens: number('MAX_TOKENS', 64), temperature: 0, ignore_eos: true };
  isComplete(ask(question(exec.scenario.iterationInTest), fields));
}

export function firstToken() {
  isComplete(ask(question(exec.scenario.iterationInTest), { stream: true, max_tokens: 1, temperature: 0 }));
  sleep(0.25);
}

export const setup = setUp;
export const teardown = tearDown;
