//! What the process takes of the machine while time goes by.

use std::{fs, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, interval},
};

const EVERY: Duration = Duration::from_secs(2);

/// What the last half may have grown, by the line that fits it best. Noise of a fault that comes round is less.
const RESIDENT_KIB_MAX: f64 = 2048.0;
const DESCRIPTORS_MAX: f64 = 6.0;
const THREADS_MAX: f64 = 2.0;

pub struct Watch {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Samples>,
}

/// One look after the other.
pub struct Samples {
    length: Duration,
    looks: Vec<Look>,
}

#[derive(Clone, Copy)]
struct Look {
    at: Duration,
    resident_kib: f64,
    descriptors: f64,
    threads: f64,
    cpu_secs: f64,
}

impl Watch {
    pub fn start(id: u32, length: Duration) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let mut ticks = interval(EVERY);
            let mut looks = Vec::new();
            loop {
                tokio::select! {
                    _ = ticks.tick() => looks.extend(Look::at(id, begun.elapsed())),
                    _ = &mut stopped => return Samples { length, looks },
                }
            }
        });
        Self { stop, task }
    }

    pub async fn end(self) -> Samples {
        drop(self.stop);
        self.task.await.unwrap()
    }
}

impl Look {
    fn at(id: u32, at: Duration) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // utime and stime (`man 5 proc`), in hundredths of a second.
        let fields = stat
            .rsplit_once(") ")?
            .1
            .split_whitespace()
            .skip(11)
            .take(2);
        let ticks: u32 = fields.filter_map(|field| field.parse::<u32>().ok()).sum();
        Some(Self {
            at,
            resident_kib: number("VmRSS:")?,
            descriptors: fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as f64,
            threads: number("Threads:")?,
            cpu_secs: f64::from(ticks) / 100.0,
        })
    }
}

impl Samples {
    /// Prints them by tenths of the time; `false` if anything grows.
    pub fn show(&self) -> bool {
        println!(
            "\n  {:>7}{:>16}{:>18}{:>14}{:>10}{:>12}",
            "minute", "resident MiB", "(most) MiB", "descriptors", "threads", "CPU %"
        );
        for tenth in 0..10 {
            let (from, to) = (self.length * tenth / 10, self.length * (tenth + 1) / 10);
            let looks: Vec<&Look> = self.between(from, to).collect();
            let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
                continue;
            };
            let mean = |of: fn(&Look) -> f64| {
                looks.iter().map(|look| of(look)).sum::<f64>() / looks.len() as f64
            };
            let most = looks.iter().map(|l| l.resident_kib).fold(0.0, f64::max);
            let busy = (last.cpu_secs - first.cpu_secs) / (last.at - first.at).as_secs_f64();
            println!(
                "  {:>7.1}{:>16.1}{:>18.1}{:>14.1}{:>10.1}{:>12.1}",
                to.as_secs_f64() / 60.0,
                mean(|look| look.resident_kib) / 1024.0,
                most / 1024.0,
                mean(|look| look.descriptors),
                mean(|look| look.threads),
                busy * 100.0,
            );
        }
        println!("\n  growth over the last half, by the line that fits best");
        let mut flat = true;
        for (name, grown, most) in [
            (
                "resident KiB",
                self.grown(|l| l.resident_kib),
                RESIDENT_KIB_MAX,
            ),
            (
                "descriptors",
                self.grown(|l| l.descriptors),
                DESCRIPTORS_MAX,
            ),
            ("threads", self.grown(|l| l.threads), THREADS_MAX),
        ] {
            println!("  {name:<16}{grown:>10.1}   (at most {most})");
            flat &= grown <= most;
        }
        flat
    }

    fn between(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Look> {
        self.looks
            .iter()
            .filter(move |look| (from..to).contains(&look.at))
    }

    /// Least squares over the last half, times its length.
    fn grown(&self, of: fn(&Look) -> f64) -> f64 {
        let half = self.length / 2;
        let points: Vec<(f64, f64)> = self
            .between(half, self.length)
            .map(|look| (look.at.as_secs_f64(), of(look)))
            .collect();
        let count = points.len() as f64;
        let (x, y) = points
            .iter()
            .fold((0.0, 0.0), |(x, y), (at, value)| (x + at, y + value));
        let (x, y) = (x / count, y / count);
        let (above, below) = points
            .iter()
            .fold((0.0, 0.0), |(above, below), (at, value)| {
                (above + (at - x) * (value - y), below + (at - x).powi(2))
            });
        above / below * half.as_secs_f64()
    }
}
