//! A progress bar on a terminal; nothing where nobody watches.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Follows the stages of a start.
pub struct Progress {
    bar: ProgressBar,
    stage: &'static str,
}

impl Progress {
    pub fn new() -> Self {
        let template = "{msg:20} [{bar:32}] {bytes}/{total_bytes} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(0).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, stage: "" }
    }

    pub fn show(&mut self, stage: &'static str, done: u64, total: u64) {
        if self.stage != stage {
            self.stage = stage;
            self.bar.set_message(stage);
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
