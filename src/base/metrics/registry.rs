//! Every series by metric and labels, and the text that Prometheus reads.
//!
//! Invariant: the text holds each family once, with its help and type, series in order of labels; a histogram's
//! buckets, sum and count are of one reading.

use std::cmp::Ordering;
use std::fmt::Write;
use std::sync::{PoisonError, RwLock};

use super::series::{Counter, Distribution, Gauge, Histogram};
use super::table::{Kind, Metric, TABLE};

/// All families, in the order of the table.
#[derive(Debug)]
pub struct Registry {
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    /// Sorted by label values.
    series: RwLock<Vec<Series>>,
}

/// Label values, and what records under them.
type Series = (Box<[Box<str>]>, Handle);

#[derive(Debug, Clone)]
enum Handle {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// What one series holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    Distribution(Distribution),
}

impl Registry {
    pub fn new() -> Self {
        let family = |metric: &&'static Metric| Family { metric, series: RwLock::default() };
        Self { families: TABLE.iter().map(family).collect() }
    }

    /// The counter with these label values, made when it is new.
    ///
    /// Panics when the metric is no counter of the table: the table and the code are one program.
    pub fn counter(&self, metric: &'static Metric, labels: &[&str]) -> Counter {
        let made = || Handle::Counter(Counter::default());
        match self.family(metric).series(labels, made) {
            Handle::Counter(counter) => counter,
            _ => panic!("{} is no counter", metric.name),
        }
    }

    /// As [`Registry::counter`].
    pub fn gauge(&self, metric: &'static Metric, labels: &[&str]) -> Gauge {
        match self.family(metric).series(labels, || Handle::Gauge(Gauge::default())) {
            Handle::Gauge(gauge) => gauge,
            _ => panic!("{} is no gauge", metric.name),
        }
    }

    /// As [`Registry::counter`].
    pub fn histogram(&self, metric: &'static Metric, labels: &[&str]) -> Histogram {
        let Kind::Histogram(bounds) = metric.kind else { panic!("{} is no histogram", metric.name) };
        match self.family(metric).series(labels, || Handle::Histogram(Histogram::new(bounds))) {
            Handle::Histogram(histogram) => histogram,
            _ => panic!("{} is no histogram", metric.name),
        }
    }

    /// Every series of a metric: label values and what it holds.
    pub fn read(&self, metric: &'static Metric) -> Vec<(Vec<String>, Value)> {
        let series = self.family(metric).series.read().unwrap_or_else(PoisonError::into_inner);
        let owned = |labels: &[Box<str>]| labels.iter().map(|label| label.to_string()).collect();
        series.iter().map(|(labels, handle)| (owned(labels), handle.value())).collect()
    }

    /// The samples of all series of a metric, added up; a histogram without any has no samples.
    pub fn sum(&self, metric: &'static Metric) -> Value {
        let mut values = self.read(metric).into_iter().map(|(_, value)| value);
        let empty = || match metric.kind {
            Kind::Histogram(bounds) => Value::Distribution(Histogram::new(bounds).distribution()),
            Kind::Counter | Kind::Gauge => Value::Number(0.0),
        };
        let first = values.next().unwrap_or_else(empty);
        values.fold(first, Value::plus)
    }

    /// The text of every family of the table. One that has no series yet is named all the same.
    pub fn render(&self, out: &mut String) {
        for family in &self.families {
            let Metric { name, kind, labels, help } = family.metric;
            head(out, name, *kind, help);
            for (values, value) in self.read(family.metric) {
                let pairs: Vec<_> = labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                sample(out, name, &pairs, &value);
            }
        }
    }

    fn family(&self, metric: &'static Metric) -> &Family {
        let found = self.families.iter().find(|family| std::ptr::eq(family.metric, metric));
        found.unwrap_or_else(|| panic!("{} is not in the table", metric.name))
    }
}

impl Family {
    fn series(&self, labels: &[&str], make: impl FnOnce() -> Handle) -> Handle {
        debug_assert_eq!(self.metric.labels.len(), labels.len(), "{}", self.metric.name);
        {
            let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
            if let Ok(at) = series.binary_search_by(|(values, _)| compare(values, labels)) {
                return series[at].1.clone();
            }
        }
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        match series.binary_search_by(|(values, _)| compare(values, labels)) {
            Ok(at) => series[at].1.clone(),
            Err(at) => {
                let handle = make();
                series.insert(at, (labels.iter().map(|label| Box::from(*label)).collect(), handle.clone()));
                handle
            }
        }
    }
}

fn compare(values: &[Box<str>], labels: &[&str]) -> Ordering {
    values.iter().map(|value| &**value).cmp(labels.iter().copied())
}

impl Handle {
    fn value(&self) -> Value {
        match self {
            Handle::Counter(counter) => Value::Number(counter.get() as f64),
            Handle::Gauge(gauge) => Value::Number(gauge.get()),
            Handle::Histogram(histogram) => Value::Distribution(histogram.distribution()),
        }
    }
}

impl Value {
    /// Of one metric, so of one kind.
    fn plus(self, other: Value) -> Value {
        match (self, other) {
            (Value::Number(a), Value::Number(b)) => Value::Number(a + b),
            (Value::Distribution(mut a), Value::Distribution(b)) => {
                a.add(&b);
                Value::Distribution(a)
            }
            (first, _) => first,
        }
    }
}

/// `# HELP` and `# TYPE` of a family (Prometheus text format 0.0.4).
pub fn head(out: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    // Writing to a String does not fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// The lines of one series.
pub fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: &Value) {
    match value {
        Value::Number(number) => line(out, name, "", labels, *number),
        Value::Distribution(distribution) => {
            let mut count = 0;
            for (i, in_bucket) in distribution.counts.iter().enumerate() {
                count += in_bucket;
                let bound = distribution.bounds.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                let labels: Vec<_> = labels.iter().copied().chain([("le", &*bound)]).collect();
                line(out, name, "_bucket", &labels, count as f64);
            }
            line(out, name, "_sum", labels, distribution.sum);
            line(out, name, "_count", labels, count as f64);
        }
    }
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    out.push_str(suffix);
    for (i, (label, text)) in labels.iter().enumerate() {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
    }
    let _ = writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" });
}
