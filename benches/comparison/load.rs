//! The same requests for all: through wrk, or on connections that then stay open.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::process::{Cores, command};

/// One kind of request.
pub struct Traffic {
    pub name: &'static str,
    /// CPU per request, as a multiple of nginx's.
    pub target: f64,
    pub method: &'static str,
    pub path: &'static str,
    pub status: u16,
    pub token: String,
    pub body: String,
}

/// What wrk saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub requests: u64,
    pub per_second: f64,
    pub p99: Duration,
}

impl Traffic {
    /// Keeps 64 connections busy for some seconds. Every answer must be a success.
    pub fn run(&self, port: u16, seconds: u32, cores: Cores, folder: &Path) -> Seen {
        let output = command("wrk", cores)
            .args(["-t1", "-c64", "--latency", "--timeout", "10s"])
            .arg(format!("-d{seconds}s"))
            .arg("-s")
            .arg(self.script(folder))
            .arg(format!("http://127.0.0.1:{port}{}", self.path))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "wrk failed: {output:?}");
        for bad in ["Non-2xx", "Socket errors"] {
            assert!(!text.contains(bad), "{} on port {port}: {text}", self.name);
        }
        Seen::parse(&text).unwrap_or_else(|| panic!("what wrk says has another form: {text}"))
    }

    /// Opens connections, makes one request on each, keeps them.
    pub fn idle(&self, port: u16, connections: usize) -> Vec<TcpStream> {
        let request = format!(
            "{} {} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: JWT {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
            self.method,
            self.path,
            self.token,
            self.body.len(),
            self.body
        );
        let open = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            // The answers are small and end with a brace.
            let mut answer = Vec::new();
            let mut piece = [0; 4096];
            while !answer.ends_with(b"}") {
                let length = stream.read(&mut piece).unwrap();
                assert!(length > 0, "{} was cut off", self.name);
                answer.extend_from_slice(piece.get(..length).unwrap_or_default());
            }
            let wanted = format!("HTTP/1.1 {} ", self.status);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.starts_with(&wanted), "{}: {answer}", self.name);
            stream
        };
        std::iter::repeat_with(open).take(connections).collect()
    }

    fn script(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.lua", self.method));
        let script = format!(
            "wrk.method = \"{}\"\nwrk.headers[\"Authorization\"] = \"JWT {}\"\nwrk.headers[\"Content-Type\"] = \"application/json\"\n",
            self.method, self.token
        );
        let body = if self.body.is_empty() {
            String::new()
        } else {
            format!("wrk.body = [==[{}]==]\n", self.body)
        };
        fs::write(&path, script + &body).unwrap();
        path
    }
}

impl Seen {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let p99 = lines.find_map(|line| line.strip_prefix("99%"))?.trim();
        let requests = lines.find_map(|line| line.split_once(" requests in "))?.0;
        let per_second = lines.find_map(|line| line.strip_prefix("Requests/sec:"))?;
        Some(Self {
            requests: requests.parse().ok()?,
            per_second: per_second.trim().parse().ok()?,
            p99: duration(p99)?,
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => return None,
    };
    Some(Duration::from_secs_f64(seconds))
}
