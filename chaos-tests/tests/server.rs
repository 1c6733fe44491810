//! The test server as a process: how the environment makes it begin and end.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Request, Response, run, until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server with these variables; it ends with its test.
struct Server {
    child: Child,
    door: SocketAddr,
}

impl Server {
    fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(env!("CARGO_BIN_EXE_box"))
            .env("PORT", free.port().to_string())
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, door: free })
    }

    fn get(&self, path: &str) -> Result<Response> {
        Request::get("box", path).send(self.door)
    }

    fn listens(&self) -> Result<()> {
        until("the server listens", PATIENCE, || {
            Ok(TcpStream::connect(self.door).ok().map(drop))
        })
    }

    fn terminate(&self) -> Result<()> {
        run("kill", ["-TERM", &self.child.id().to_string()])?.ok()?;
        Ok(())
    }

    fn code(&mut self) -> Result<i32> {
        let status = until("the server ends", PATIENCE, || Ok(self.child.try_wait()?))?;
        status.code().context("killed by a signal")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn it_says_who_it_is_and_ends_well_at_sigterm() -> Result<()> {
    let who = [
        ("K_SERVICE", "web"),
        ("K_REVISION", "web-00002"),
        ("HOSTNAME", "web-00002-abcde"),
    ];
    let mut server = Server::start(&who)?;
    server.listens()?;
    let answer = server.get("/")?.ok()?.says("box")?;
    ensure!(answer.header("x-box-service")? == "web", "{answer:?}");
    ensure!(
        answer.header("x-box-revision")? == "web-00002",
        "{answer:?}"
    );
    ensure!(
        answer.header("x-box-instance")? == "web-00002-abcde",
        "{answer:?}"
    );
    let other = Server::start(&who)?;
    other.listens()?;
    let process = |answer: &Response| answer.header("x-box-process").map(ToOwned::to_owned);
    ensure!(process(&answer)? != process(&other.get("/")?)?);
    server.terminate()?;
    ensure!(server.code()? == 0);
    Ok(())
}

#[test]
fn the_environment_sets_its_exit_code() -> Result<()> {
    let mut server = Server::start(&[("BOX_EXIT_CODE", "42")])?;
    server.listens()?;
    server.terminate()?;
    ensure!(server.code()? == 42);
    Ok(())
}

#[test]
fn it_can_ignore_sigterm() -> Result<()> {
    let server = Server::start(&[("BOX_IGNORE_TERM", "1")])?;
    server.listens()?;
    for _ in 0..3 {
        server.terminate()?;
        server.get("/")?.ok()?;
    }
    Ok(())
}

#[test]
fn it_can_be_slow_to_listen() -> Result<()> {
    let began = Instant::now();
    let mut server = Server::start(&[("BOX_START_DELAY", "1s")])?;
    server.listens()?;
    ensure!(began.elapsed() >= Duration::from_secs(1));
    server.terminate()?;
    ensure!(server.code()? == 0);
    // Nor does it wait for its beginning to end.
    let mut server = Server::start(&[("BOX_START_DELAY", "600s")])?;
    until("it ends", PATIENCE, || {
        server.terminate()?; // Before the process is ready for it, the signal ends it as well.
        Ok(server.child.try_wait()?)
    })?;
    Ok(())
}

#[test]
fn it_can_crash_after_so_many_requests() -> Result<()> {
    let mut server = Server::start(&[("BOX_CRASH_AFTER", "2"), ("BOX_EXIT_CODE", "7")])?;
    server.listens()?;
    server.get("/")?.ok()?;
    server.get("/")?.ok()?;
    ensure!(server.get("/").is_err());
    ensure!(server.code()? == 7);
    Ok(())
}

#[test]
fn a_request_can_end_it() -> Result<()> {
    let mut server = Server::start(&[])?;
    server.listens()?;
    ensure!(server.get("/do?exit=3").is_err());
    ensure!(server.code()? == 3);
    Ok(())
}

#[test]
fn a_request_can_cost_processor_time_and_memory() -> Result<()> {
    let server = Server::start(&[])?;
    server.listens()?;
    let ticks = || -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id()))?;
        let after = stat.rsplit(')').next().context("no name in stat")?;
        let user = after
            .split_whitespace()
            .nth(11)
            .context("no time in stat")?;
        Ok(user.parse()?)
    };
    let before = ticks()?;
    server.get("/do?cpu=200ms")?.ok()?;
    // A tick is 10 ms.
    ensure!(ticks()? >= before + 15);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| server.get("/do?memory=64Mi&delay=2s"));
        until("the memory is there", PATIENCE, || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id()))?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            let size = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            Ok((size.context("no VmRSS")? > 64 << 10).then_some(()))
        })?;
        let answer = held
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        answer?.ok().map(drop)
    })
}
