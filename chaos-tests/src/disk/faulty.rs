//! A disk that fails, waits or tears as rules say: the test's side of the file system in user space.
//! Owns its process and the folder behind.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::fuse::Ask;
use super::mount::{Mount, beside};
use super::rule::{Count, Rule};
use crate::world::until;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Faulty {
    mount: Mount,
    behind: PathBuf,
    process: Mutex<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Faulty {
    /// What the folder holds already is moved to the folder behind and shows through.
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        let behind = beside(dir, "behind");
        ensure!(!behind.exists(), "{} is left over", behind.display());
        fs::create_dir_all(dir)?;
        fs::rename(dir, &behind)?;
        let mount = Mount::prepare(dir)?;
        let process = Mutex::new(Process::start(&behind, mount.dir())?);
        Ok(Self {
            mount,
            behind,
            process,
        })
    }

    pub(super) fn power_on(&mut self) -> Result<()> {
        let process = self.process.get_mut();
        let process = process.unwrap_or_else(PoisonError::into_inner);
        // A process that was killed answers no more, also while it still dies.
        if self.mount.stands() && process.ask(&Ask::Counts).is_ok() {
            return Ok(());
        }
        process.end();
        self.mount.detach()?;
        *process = Process::start(&self.behind, self.mount.dir())?;
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        self.mount.dir()
    }

    /// What the disk really holds; changes made here show through.
    pub fn behind(&self) -> &Path {
        &self.behind
    }

    /// These rules from now on, each counting from zero, and no others.
    pub fn inject(&self, rules: &[Rule]) -> Result<()> {
        self.ask(&Ask::Rules(rules.to_vec())).map(drop)
    }

    /// How often each rule saw a call and how often its fault was met, in the rules' order.
    pub fn counts(&self) -> Result<Vec<Count>> {
        self.ask(&Ask::Counts)
    }

    /// Shows that every rule's fault was met.
    pub fn check(&self) -> Result<Vec<Count>> {
        let counts = self.counts()?;
        let held = !counts.is_empty() && counts.iter().all(|count| count.fired > 0);
        ensure!(held, "a fault that no call met: {counts:?}");
        Ok(counts)
    }

    /// No rules any more; tells what came of them.
    pub fn heal(&self) -> Result<Vec<Count>> {
        self.ask(&Ask::Rules(Vec::new()))
    }

    fn ask(&self, ask: &Ask) -> Result<Vec<Count>> {
        let process = self.process.lock();
        process.unwrap_or_else(PoisonError::into_inner).ask(ask)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let process = self.process.get_mut();
        process.unwrap_or_else(PoisonError::into_inner).end();
    }
}

impl Process {
    fn start(behind: &Path, dir: &Path) -> Result<Self> {
        let mut child = Command::new(program()?)
            .args([behind, dir])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting faultfs")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no stdout")?;
        let stdout = BufReader::new(stdout);
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        // It says its first line when it serves.
        if let Err(error) = process.answer() {
            process.end();
            return Err(error);
        }
        Ok(process)
    }

    fn ask(&mut self, ask: &Ask) -> Result<Vec<Count>> {
        let stdin = self.stdin.as_mut().context("faultfs has ended")?;
        writeln!(stdin, "{}", serde_json::to_string(ask)?)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Vec<Count>> {
        let limit = Timespec::try_from(PATIENCE)?;
        let said = &mut [PollFd::new(self.stdout.get_ref(), PollFlags::IN)];
        ensure!(poll(said, Some(&limit))? == 1, "faultfs does not answer");
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("faultfs says {line:?}"))
    }

    /// It unmounts itself and exits when its stdin ends.
    fn end(&mut self) {
        self.stdin = None;
        let ended = until("faultfs ends", PATIENCE, || {
            Ok(self.child.try_wait()?.map(drop))
        });
        if let Err(error) = ended {
            eprintln!("{error:#}");
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Beside the running program, or a folder up when that is a test.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let near = own.ancestors().skip(1).take(2);
    let mut programs = near.map(|dir| dir.join("faultfs"));
    let hint = "no faultfs; build it: cargo build --workspace --bins";
    programs.find(|program| program.exists()).context(hint)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Instant;

    use super::super::{Disk, Effect, Op, rot};
    use super::*;
    use crate::world::run;

    fn disk() -> Result<(tempfile::TempDir, Faulty)> {
        let home = tempfile::tempdir()?;
        let disk = Disk::faulty(&home.path().join("disk"))?;
        Ok((home, disk))
    }

    fn code<T>(done: std::io::Result<T>) -> Option<i32> {
        done.err().and_then(|error| error.raw_os_error())
    }

    const EIO: Option<i32> = Some(5);

    #[test]
    fn files_folders_and_links_pass_through() -> Result<()> {
        let (_home, disk) = disk()?;
        let at = |name: &str| disk.dir().join(name);
        fs::create_dir_all(at("a/b"))?;
        fs::write(at("a/b/file"), "one")?;
        File::options()
            .append(true)
            .open(at("a/b/file"))?
            .write_all(b" two")?;
        ensure!(fs::read_to_string(disk.behind().join("a/b/file"))? == "one two");
        fs::rename(at("a/b/file"), at("a/moved"))?;
        fs::hard_link(at("a/moved"), at("again"))?;
        symlink("a/moved", at("link"))?;
        ensure!(fs::read_to_string(at("link"))? == "one two");
        ensure!(fs::read_link(at("link"))? == Path::new("a/moved"));
        ensure!(fs::metadata(at("again"))?.nlink() == 2);
        fs::set_permissions(at("again"), fs::Permissions::from_mode(0o640))?;
        ensure!(fs::metadata(at("a/moved"))?.mode() & 0o777 == 0o640);
        File::options().write(true).open(at("again"))?.set_len(3)?;
        ensure!(fs::read_to_string(at("a/moved"))? == "one");
        fs::remove_file(at("again"))?;
        fs::remove_dir(at("a/b"))?;
        let mut names: Vec<_> = fs::read_dir(disk.dir())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        ensure!(names == ["a", "link"], "{names:?}");
        ensure!(code(fs::metadata(at("no"))) == Some(2));
        Ok(())
    }

    #[test]
    fn many_files_are_listed_and_a_removed_one_is_still_read() -> Result<()> {
        let (_home, disk) = disk()?;
        for number in 0..3000 {
            File::create(disk.dir().join(format!("file-with-a-long-name-{number}")))?;
        }
        ensure!(fs::read_dir(disk.dir())?.count() == 3000);
        let path = disk.dir().join("open");
        let mut file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)?;
        file.write_all(b"still")?;
        fs::remove_file(&path)?;
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        ensure!(text == "still" && file.metadata()?.nlink() == 0);
        Ok(())
    }

    #[test]
    fn sockets_locks_attributes_and_mapped_files_work() -> Result<()> {
        let (_home, disk) = disk()?;
        let at = |name: &str| disk.dir().join(name);
        let listener = UnixListener::bind(at("sock"))?;
        UnixStream::connect(at("sock"))?.write_all(b"hi")?;
        let mut heard = String::new();
        listener.accept()?.0.read_to_string(&mut heard)?;
        ensure!(heard == "hi" && fs::metadata(at("sock"))?.file_type().is_socket());

        let locked = File::create(at("lock"))?;
        locked.try_lock()?;
        ensure!(File::open(at("lock"))?.try_lock().is_err());

        rustix::fs::setxattr(
            at("lock"),
            "user.what",
            b"value",
            rustix::fs::XattrFlags::empty(),
        )?;
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(at("lock"), "user.what", &mut value)?;
        ensure!(&value[..length] == b"value");

        // A program is mapped to be run.
        fs::copy("/bin/true", at("true"))?;
        run(&at("true").to_string_lossy(), [""; 0])?.ok()?;
        run("mknod", [&*at("null").to_string_lossy(), "c", "1", "3"])?.ok()?;
        fs::write(at("null"), "gone")?;
        Ok(())
    }

    #[test]
    fn what_the_folder_held_shows_and_comes_back_after_its_process_died() -> Result<()> {
        let home = tempfile::tempdir()?;
        let dir = home.path().join("disk");
        fs::create_dir(&dir)?;
        fs::write(dir.join("old"), "here")?;
        let mut disk = Disk::faulty(&dir)?;
        ensure!(fs::read_to_string(dir.join("old"))? == "here");
        disk.process.get_mut().expect("no panic").child.kill()?;
        until("the disk is dead", PATIENCE, || {
            Ok(fs::read(dir.join("old")).err().map(drop))
        })?;
        disk.power_on()?;
        ensure!(fs::read_to_string(dir.join("old"))? == "here");
        disk.counts()?;
        drop(disk);
        ensure!(fs::read_dir(&dir)?.next().is_none(), "unmounted");
        Ok(())
    }

    #[test]
    fn its_process_ends_when_it_is_unmounted() -> Result<()> {
        let (_home, mut disk) = disk()?;
        disk.mount.detach()?;
        let process = disk.process.get_mut().expect("no panic");
        until("faultfs ends", PATIENCE, || {
            Ok(process.child.try_wait()?.map(drop))
        })
    }

    #[test]
    fn the_third_sync_fails_and_no_other() -> Result<()> {
        let (_home, disk) = disk()?;
        let mut file = File::create(disk.dir().join("log"))?;
        disk.inject(&[Rule::new(Op::Fsync, Effect::Eio)
            .on("log")
            .after(2)
            .times(1)])?;
        ensure!(disk.check().is_err(), "no call met it yet");
        let met: Vec<_> = (0..5)
            .map(|_| {
                file.write_all(b"x")?;
                Ok(code(file.sync_data()))
            })
            .collect::<Result<_>>()?;
        ensure!(met == [None, None, EIO, None, None], "{met:?}");
        ensure!(disk.check()? == [Count { seen: 5, fired: 1 }]);
        disk.heal()?;
        ensure!(disk.counts()?.is_empty());
        Ok(())
    }

    #[test]
    fn a_torn_write_leaves_its_first_half() -> Result<()> {
        let (_home, disk) = disk()?;
        let path = disk.dir().join("log");
        fs::write(&path, "0000")?;
        disk.inject(&[Rule::new(Op::Write, Effect::Torn)])?;
        let mut file = File::options().write(true).open(&path)?;
        ensure!(code(file.write_all(b"1111")) == EIO);
        disk.heal()?;
        ensure!(fs::read_to_string(&path)? == "1100");
        ensure!(fs::read_to_string(disk.behind().join("log"))? == "1100");
        Ok(())
    }

    #[test]
    fn each_operation_can_fail_by_name() -> Result<()> {
        let (_home, disk) = disk()?;
        let at = |name: &str| disk.dir().join(name);
        fs::write(at("file"), "text")?;
        let fails = |op: Op, effect: Effect| disk.inject(&[Rule::new(op, effect)]);
        fails(Op::Open, Effect::Eio)?;
        ensure!(code(File::open(at("file"))) == EIO);
        fails(Op::Read, Effect::Eio)?;
        ensure!(code(fs::read(at("file"))) == EIO);
        fails(Op::Create, Effect::Enospc)?;
        let full = File::create(at("new")).err().map(|error| error.kind());
        ensure!(full == Some(ErrorKind::StorageFull));
        fails(Op::Rename, Effect::Eio)?;
        ensure!(code(fs::rename(at("file"), at("new"))) == EIO);
        fails(Op::Unlink, Effect::Eio)?;
        ensure!(code(fs::remove_file(at("file"))) == EIO);
        fails(Op::Resize, Effect::Enospc)?;
        let file = File::options().write(true).open(at("file"))?;
        ensure!(code(file.set_len(0)) == Some(28));
        fails(Op::Fsync, Effect::Eio)?;
        ensure!(
            code(File::open(disk.dir())?.sync_all()) == EIO,
            "a folder's"
        );
        disk.heal()?;
        ensure!(fs::read_to_string(at("file"))? == "text");
        Ok(())
    }

    #[test]
    fn a_slow_sync_holds_up_nobody_else() -> Result<()> {
        let (_home, disk) = disk()?;
        let slow = Duration::from_secs(2);
        let rule = Rule::new(Op::Fsync, Effect::Delay(slow)).on("slow");
        disk.inject(&[rule.times(1)])?;
        let file = File::create(disk.dir().join("slow"))?;
        let began = Instant::now();
        let syncing = std::thread::spawn(move || file.sync_all());
        until("it waits", PATIENCE, || Ok(disk.check().ok()))?;
        fs::write(disk.dir().join("other"), "done")?;
        ensure!(!syncing.is_finished(), "the other was not held up");
        syncing.join().expect("no panic")?;
        ensure!(began.elapsed() >= slow);
        Ok(())
    }

    #[test]
    fn rot_behind_shows_at_the_next_open() -> Result<()> {
        let (_home, disk) = disk()?;
        let path = disk.dir().join("file");
        fs::write(&path, [7; 8])?;
        ensure!(fs::read(&path)? == [7; 8]);
        rot::flip(&disk.behind().join("file"), 3)?;
        ensure!(fs::read(&path)?[3] == !7);
        rot::truncate(&path, 6)?;
        ensure!(fs::read(disk.behind().join("file"))? == [7, 7]);
        Ok(())
    }
}
