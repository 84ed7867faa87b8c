//! A program that is measured: its CPU time, its memory, its system calls.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Linux counts in these for everybody, whatever its own clock (`man 5 proc`).
const TICKS_PER_SECOND: u64 = 100;

/// Which cores a program may use.
#[derive(Clone, Copy, Debug)]
pub enum Cores {
    /// The first one: a proxy that is measured.
    First,
    /// The second one: whatever makes or takes the load.
    Second,
    /// All.
    All,
}

/// A program with its children; ends when dropped.
pub struct Process {
    child: Child,
}

/// Time on a core: in the program itself, and in the kernel on its behalf.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    pub user: Duration,
    pub system: Duration,
}

/// What a program asked of the kernel.
pub struct SystemCalls {
    pub total: u64,
    /// The most frequent first.
    pub by_name: Vec<(String, u64)>,
}

impl Process {
    /// Starts a program; what it prints goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child }
    }

    /// The same, and waits until it listens.
    pub fn start_server(command: &mut Command, log: &Path, port: u16) -> Self {
        let mut process = Self::start(command, log);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = process.child.try_wait().unwrap() {
                let said = fs::read_to_string(log).unwrap_or_default();
                panic!("{command:?} ended by itself ({status}): {said}");
            }
            assert!(Instant::now() < deadline, "{command:?} never listens");
            thread::sleep(Duration::from_millis(20));
        }
        process
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads and children so far.
    pub fn cpu(&self) -> CpuTime {
        let sum = |number| {
            let ticks: u64 = self.family().into_iter().map(|id| ticks(id, number)).sum();
            Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
        };
        // utime and stime, by their numbers in `man 5 proc`.
        CpuTime {
            user: sum(14),
            system: sum(15),
        }
    }

    /// Memory that is resident, of it and its children.
    pub fn resident_kib(&self) -> u64 {
        let resident = |id: u32| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            number.unwrap_or_default()
        };
        self.family().into_iter().map(resident).sum()
    }

    /// Counts its system calls while `load` runs.
    pub fn system_calls(&self, folder: &Path, load: impl FnOnce()) -> SystemCalls {
        let summary = folder.join("strace");
        let family = self.family();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o"]).arg(&summary);
        for id in &family {
            strace.args(["-p", &id.to_string()]);
        }
        let strace = Self::start(&mut strace, &folder.join("strace.log"));
        let deadline = Instant::now() + PATIENCE;
        while !family.iter().all(|id| is_traced(*id)) {
            assert!(Instant::now() < deadline, "strace can't attach");
            thread::sleep(Duration::from_millis(20));
        }
        load();
        strace.stop("INT");
        SystemCalls::parse(&fs::read_to_string(summary).unwrap())
    }

    /// Tells it to end, and waits.
    pub fn stop(mut self, signal: &str) {
        self.signal(signal);
        self.wait();
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, signal: &str) {
        let told = Command::new("kill")
            .args(["-s", signal, &self.id().to_string()])
            .stderr(Stdio::null())
            .status();
        assert!(told.is_ok(), "there is no kill(1)");
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// It and its children: nginx works in those.
    fn family(&self) -> Vec<u32> {
        let id = self.id();
        let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let other: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            (stat(other)?.get(1)? == &id.to_string()).then_some(other)
        });
        std::iter::once(id).chain(children).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal("TERM");
            self.wait();
        }
    }
}

impl SystemCalls {
    fn parse(summary: &str) -> Self {
        // "% time, seconds, usecs/call, calls, errors or nothing, name"
        let mut by_name: Vec<(String, u64)> = summary
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let calls = fields.get(3)?.parse().ok()?;
                Some(((*fields.last()?).to_owned(), calls))
            })
            .collect();
        by_name.retain(|(name, _)| name != "total");
        by_name.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        Self {
            total: by_name.iter().map(|(_, calls)| calls).sum(),
            by_name,
        }
    }
}

/// A program on these cores only.
pub fn command(program: &str, cores: Cores) -> Command {
    let pinned = |core| {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", core, program]);
        command
    };
    match cores {
        Cores::First => pinned("0"),
        Cores::Second => pinned("1"),
        Cores::All => Command::new(program),
    }
}

fn ticks(id: u32, number: usize) -> u64 {
    let stat = stat(id).unwrap_or_default();
    let field = stat.get(number - 3).and_then(|text| text.parse().ok());
    field.unwrap_or_default()
}

/// The fields of `/proc/<id>/stat` from the third on: the second is a name in parentheses.
fn stat(id: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn is_traced(id: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{id}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    })
}
