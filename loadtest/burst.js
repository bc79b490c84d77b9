// Quiet, then far more at once than the server takes, then quiet: what does not fit is refused honestly, what was
// accepted is finished, and afterwards everything is as before.
//
// RATE (100 a second at the top), QUIET_RATE (2), DURATION (30s of burst), MAX_VUS (2000), MAX_TOKENS (64)

import exec from 'k6/execution';

import { ask, env, isCompleteOrRefused, number, question, setUp, tearDown } from './lib/garrick.js';

const DURATION = env('DURATION', '30s');
const SECONDS = seconds(DURATION);
const QUIET_S = Math.max(3, SECONDS / 3);

function quiet(startS) {
  return {
    executor: 'constant-arrival-rate', rate: number('QUIET_RATE', 2), duration: `${QUIET_S}s`,
    startTime: `${startS}s`, preAllocatedVUs: 8, exec: 'chat',
  };
}

export const options = {
  scenarios: {
    before: quiet(0),
    burst: {
      executor: 'ramping-arrival-rate', startRate: 0, startTime: `${QUIET_S}s`, preAllocatedVUs: 50,
      maxVUs: number('MAX_VUS', 2000), exec: 'chat', gracefulStop: '60s',
      stages: [{ target: number('RATE', 100), duration: '1s' }, { target: number('RATE', 100), duration: DURATION }],
    },
    // As long again for what is still inside to end.
    after: quiet(QUIET_S + 1 + 2 * SECONDS),
  },
  thresholds: {
    checks: ['rate==1'],
    'garrick_refused{scenario:before}': ['count==0'],
    'garrick_refused{scenario:after}': ['count==0'],
    'garrick_tokens{scenario:after}': ['count>0'],
  },
};

function seconds(text) {
  const match = text.match(/^([0-9.]+)(s|m)$/);
  if (match === null) throw new Error(`DURATION must be as 30s or 2m, not '${text}'`);
  return Number(match[1]) * (match[2] === 'm' ? 60 : 1);
}

export function chat() {
  const fields = { stream: true, max_tokens: number('MAX_TOKENS', 64), temperature: 0, ignore_eos: true };
  isCompleteOrRefused(ask(question(exec.scenario.iterationInTest), fields));
}

export const setup = setUp;
export const teardown = tearDown;
