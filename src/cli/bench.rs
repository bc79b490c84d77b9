//! `garrick bench`: what the model and the device give, without HTTP: a lane and its executor in one loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use serde_json::json;

use super::args::BenchArgs;
use super::progress::Progress;
use super::serve::{engine_exit, print_summary};
use super::{Exit, Failure};
use crate::actors::supervisor::LaneSeed;
use crate::app::devices::cpu;
use crate::app::engine::{self, Engine};
use crate::base::config::{Config, Speculative};
use crate::sample::SamplingParams;
use crate::sched::job::{CancelFlag, Job, Progress as JobProgress, RequestId, StopRules};
use crate::sched::plan::StepPlan;
use crate::sched::{FifoWindow, Lane};

/// One batch size, measured.
struct Figures {
    batch: u32,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    decode_step_ms: f64,
}

pub fn run(args: BenchArgs) -> Result<(), Failure> {
    let config = args.config.load(&args.model.flags())?;
    if args.probe {
        return probe(&config, args.json);
    }
    // What is measured apart must not share: no prefixes, and no prompts held back by streams; and a step's tokens must
    // not depend on what they are.
    let kv = crate::base::config::Kv { prefix_cache: false, ..config.kv };
    let scheduler =
        crate::base::config::Scheduler { max_slowdown: 1e6, speculative: Speculative::Off, ..config.scheduler };
    let config = Config { kv, scheduler, ..config };
    let mut progress = Progress::new();
    let built = engine::build(&config, &mut |stage, done, total| progress.show(stage, done, total));
    progress.finish();
    let Engine { model, mut seeds, summary } = built.map_err(|e| Failure::new(engine_exit(&e), e))?;
    let seed = &mut seeds[0];
    let length = (args.prompt_tokens + args.output_tokens) as usize;
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    if length > model.max_sequence_tokens || largest as usize > model.max_running {
        let message = format!(
            "{length} tokens a sequence and batches of {largest} are wanted, but a sequence holds {} tokens and {} run at \
             once; lower --prompt-tokens, --output-tokens or --batch, or raise scheduler.max_running",
            model.max_sequence_tokens, model.max_running
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut figures = Vec::new();
    for &batch in &args.batch {
        eprintln!("batch {batch}: {} run(s)", args.repeat);
        let mut runs = (0..args.repeat)
            .map(|run| measure(seed, &args, batch, run, model.vocab_size))
            .collect::<Result<Vec<_>, _>>()?;
        figures.push(median(&mut runs));
    }
    report(&args, &summary, &figures);
    Ok(())
}

/// The roofline: what no kernel on this machine can exceed.
fn probe(config: &Config, json: bool) -> Result<(), Failure> {
    eprintln!("reading and multiplying for some seconds; anything else that runs lowers the figures");
    let peaks = cpu::probe(config).map_err(|e| Failure::new(Exit::Usage, e))?;
    if json {
        let report = json!({
            "isa": peaks.isa.to_string(), "threads": peaks.threads, "read_gb_per_s": peaks.read_gb_per_s,
            "f32_gflops": peaks.f32_gflops, "bf16_gflops": peaks.bf16_gflops, "int8_gops": peaks.int8_gops,
        });
        println!("{report:#}");
        return Ok(());
    }
    println!("{}, {} thread(s)", peaks.isa, peaks.threads);
    println!("memory read      {:>7.1} GB/s", peaks.read_gb_per_s);
    println!("float32 FMA      {:>7.0} GFLOP/s", peaks.f32_gflops);
    match peaks.bf16_gflops {
        Some(peak) => println!("bfloat16 dot     {peak:>7.0} GFLOP/s"),
        None => println!("bfloat16 dot           -"),
    }
    println!("8-bit dot        {:>7.0} GOP/s", peaks.int8_gops);
    Ok(())
}

/// Runs one batch to its end and adds up the time of steps with prompt rows and of steps that only decode.
fn measure(seed: &mut LaneSeed, args: &BenchArgs, batch: u32, run: u32, vocab: usize) -> Result<Figures, Failure> {
    let internal = |e: String| Failure::new(Exit::Internal, e);
    let mut lane = Lane::new(seed.config.clone()).map_err(|e| Failure::new(Exit::Usage, e))?;
    let mut window = FifoWindow::new(0);
    (0..batch).for_each(|i| lane.submit(job(args, (run * batch + i).into(), vocab)));
    let (mut prefill, mut decode) = (Tally::default(), Tally::default());
    while lane.has_work() {
        let Some(plan) = lane.plan(0, &mut window).plan else { break };
        let tally = if is_decode(&plan) { &mut decode } else { &mut prefill };
        let began = Instant::now();
        let output = seed.executor.step(&plan).map_err(|e| internal(e.to_string()))?;
        tally.add(plan.num_tokens(), began.elapsed());
        lane.complete(output);
        lane.reuse(plan);
    }
    Ok(Figures {
        batch,
        prefill_tokens_per_s: prefill.rate(),
        decode_tokens_per_s: decode.rate(),
        decode_step_ms: decode.time.as_secs_f64() * 1e3 / decode.steps.max(1) as f64,
    })
}

fn is_decode(plan: &StepPlan) -> bool {
    plan.rows.iter().all(|rows| rows.tokens.len() == 1 && !rows.samples.is_empty())
}

#[derive(Default)]
struct Tally {
    tokens: usize,
    steps: usize,
    time: Duration,
}

impl Tally {
    fn add(&mut self, tokens: usize, time: Duration) {
        self.tokens += tokens;
        self.steps += 1;
        self.time += time;
    }

    fn rate(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

/// Prompts differ, so that nothing is shared; what they say does not matter to the time.
fn job(args: &BenchArgs, number: u64, vocab: usize) -> Job<()> {
    let token = |i: u32| ((u64::from(i) * 7919 + number * 104_729 + 11) % vocab as u64) as u32;
    Job {
        request: RequestId(number),
        sink: (),
        prompt: (0..args.prompt_tokens).map(token).collect(),
        params: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        stop: StopRules { stop_tokens: Arc::from([]), min_tokens: 0, max_tokens: args.output_tokens },
        prompt_logprobs: None,
        salt: 0,
        arrived_at: number,
        deadline: None,
        cancel: CancelFlag::default(),
        branches: Job::<()>::new_branches(1),
        progress: JobProgress::default(),
    }
}

fn median(runs: &mut [Figures]) -> Figures {
    let mut of = |value: fn(&Figures) -> f64| {
        runs.sort_by(|a, b| value(a).total_cmp(&value(b)));
        value(&runs[runs.len() / 2])
    };
    let (prefill, decode, step) =
        (of(|f| f.prefill_tokens_per_s), of(|f| f.decode_tokens_per_s), of(|f| f.decode_step_ms));
    Figures { batch: runs[0].batch, prefill_tokens_per_s: prefill, decode_tokens_per_s: decode, decode_step_ms: step }
}

fn report(args: &BenchArgs, summary: &engine::Summary, figures: &[Figures]) {
    if args.json {
        let rows: Vec<_> = figures
            .iter()
            .map(|f| {
                json!({
                    "batch": f.batch, "prefill_tokens_per_s": f.prefill_tokens_per_s,
                    "decode_tokens_per_s": f.decode_tokens_per_s, "decode_step_ms": f.decode_step_ms,
                })
            })
            .collect();
        let report = json!({
            "model": summary.model, "device": summary.device, "weights": summary.weights, "prompt_tokens": args.prompt_tokens,
            "output_tokens": args.output_tokens, "repeat": args.repeat, "results": rows,
        });
        println!("{report:#}");
        return;
    }
    print_summary(summary);
    println!(
        "prompt  {} tokens, output {} tokens, median of {} run(s)\n",
        args.prompt_tokens, args.output_tokens, args.repeat
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["BATCH", "PREFILL TOK/S", "DECODE TOK/S", "DECODE STEP MS"]);
    for f in figures {
        table.add_row([
            f.batch.to_string(),
            format!("{:.0}", f.prefill_tokens_per_s),
            format!("{:.1}", f.decode_tokens_per_s),
            format!("{:.2}", f.decode_step_ms),
        ]);
    }
    println!("{table}");
}
