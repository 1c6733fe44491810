//! An operator's hand on an instance, from a node that does not have it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, Outcome, PATIENCE, World, run, until};

/// One of two nodes has an instance of `web`; the other is the operator's.
fn apart(world: &World) -> Result<(&Node, String)> {
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    let found = until("an instance that both nodes know", PATIENCE, || {
        let ready = |node: &Node| -> Result<Option<(String, String)>> {
            let all = node.instances("web")?;
            let ready = all.iter().find(|i| i["state"] == "Ready");
            let text = |value: &serde_json::Value| value.as_str().map(ToOwned::to_owned);
            Ok(ready.and_then(|i| Some((text(&i["nodeName"])?, text(&i["id"])?))))
        };
        let mut seen = world
            .nodes()
            .iter()
            .map(ready)
            .collect::<Result<Vec<_>>>()?;
        let first = seen.pop().flatten();
        Ok(first.filter(|one| seen.iter().all(|other| other.as_ref() == Some(one))))
    })?;
    let (has, id) = found;
    let other = world.nodes().iter().find(|node| node.name != has);
    Ok((other.context("there is another node")?, id))
}

/// A command that goes on, and its lines as they come.
struct Going {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Going {
    fn start(node: &Node, args: &[&str]) -> Result<Self> {
        let mut child = node
            .cli_command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout: ChildStdout = child.stdout.take().context("a pipe")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn line_with(&self, text: &str) -> Result<String> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.with_context(|| format!("no line with `{text}`"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        // `timeout` passes SIGTERM on to what it runs.
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().ok();
        self.child.wait().ok();
    }
}

/// The command in a terminal of its own, then its exit code and the terminal's settings.
fn in_terminal(node: &Node, args: &[&str]) -> Result<Outcome> {
    let command = node.cli_command(args);
    // Without its `timeout`, which would put it behind the terminal's back.
    let words = command
        .get_args()
        .skip(1)
        .map(|w| format!("'{}'", w.to_string_lossy()));
    let line = words.collect::<Vec<_>>().join(" ");
    let script = format!("{line}; echo code $?; stty -a");
    run("timeout", ["60", "script", "-qec", &script, "/dev/null"])
}

#[test]
fn an_instance_is_touched_from_another_node() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (operator, id) = apart(&world)?;

    let said = operator.cli(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ])?;
    let said = said.code(7)?;
    ensure!(said.out == "out\n" && said.err == "err\n", "{said}");
    operator
        .cli(&["exec", &id, "-e", "A=b", "--", "sh", "-c", "echo $A"])?
        .ok()?
        .says("b")?;
    operator
        .cli(&["exec", "web", "--", "nope"])?
        .code(127)?
        .says("nope")?;
    operator.cli(&["exec", "web", "--", "/etc"])?.code(126)?;
    operator
        .cli(&["exec", "web", "-u", "ghost", "--", "true"])?
        .code(125)?
        .says("ghost")?;
    operator
        .cli(&["exec", "webb", "--", "true"])?
        .code(125)?
        .says("webb")?;

    let said = in_terminal(
        operator,
        &[
            "exec",
            "-it",
            "web",
            "--",
            "sh",
            "-c",
            "test -t 0; exit 1$?",
        ],
    )?;
    let said = said.ok()?.says("code 10")?;
    ensure!(
        !said.out.contains("-icanon"),
        "the terminal was not given back: {said}"
    );

    // More than any buffer on the way holds.
    let (there, back) = (world.dir().join("there"), world.dir().join("back"));
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&there, &bytes)?;
    let (from, to) = (there.to_string_lossy(), back.to_string_lossy());
    operator.cli(&["cp", &from, "web:/tmp/copy"])?.ok()?;
    operator
        .cli(&["cp", &format!("{id}:/tmp/copy"), &to])?
        .ok()?;
    ensure!(fs::read(&back)? == bytes, "it came back different");
    operator
        .cli(&["cp", "web:/none", &to])?
        .code(1)?
        .says("No such file")?;
    operator
        .cli(&["cp", &from, "web:/none/there"])?
        .code(1)?
        .says("no such folder")?;

    let forward = Going::start(operator, &["port-forward", "web", "0:8080"])?;
    let line = forward.line_with("port 8080")?;
    let port = line.split([':', ' ']).nth(1).context("a port")?.to_owned();
    let url = format!("http://127.0.0.1:{port}/");
    let got = operator
        .run("curl", &["-sS", "--max-time", "20", &url])?
        .ok()?;
    ensure!(got.out.contains("box"), "{got}");
    drop(forward);

    let logs = Going::start(operator, &["logs", "web", "-f", "--tail", "0"])?;
    let mark = format!("mark-{}", std::process::id());
    until("the mark in the followed log", PATIENCE, || {
        // Its first program's own stdout, as any of its programs may write to it.
        let say = format!("echo {mark} > /proc/1/fd/1");
        operator
            .cli(&["exec", "web", "--", "sh", "-c", &say])?
            .ok()?;
        Ok(logs
            .lines
            .recv_timeout(Duration::from_secs(2))
            .ok()
            .filter(|l| l.contains(&mark)))
    })?;
    drop(logs);
    let found = operator
        .cli(&["logs", "web", "--grep", &mark, "--tail", "1"])?
        .ok()?;
    ensure!(
        found.out.lines().count() == 1 && found.out.contains(&mark),
        "{found}"
    );

    // One that has ended is told apart from one that never was.
    operator.cli(&["delete", "service/web", "-y"])?.ok()?;
    until("the instance to be gone", PATIENCE, || {
        let said = operator.cli(&["exec", &id, "--", "true"])?;
        Ok((said.code == 125).then_some(()))
    })
}

/// The program of an operator who goes away ends, on the other node too.
#[test]
fn a_program_ends_with_its_operator() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (operator, _) = apart(&world)?;
    let has = world.nodes().iter().find(|node| node.name != operator.name);
    let has = has.context("there is another node")?;
    let before = has.containers().len();
    let exec = Going::start(
        operator,
        &["exec", "web", "--", "sh", "-c", "echo up; sleep 1000"],
    )?;
    exec.line_with("up")?;
    ensure!(has.containers().len() > before, "it runs there");
    drop(exec);
    until("its program to be gone", PATIENCE, || {
        Ok((has.containers().len() == before).then_some(()))
    })
}
