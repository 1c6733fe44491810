//! Whose user a container runs as: an image's `USER` against the image's own `/etc/passwd` and
//! `/etc/group`. Reads inside the root filesystem only; never asks the host's user database.

use std::io::Read;
use std::path::Path;

use pathrs::Root;
use pathrs::flags::OpenFlags;

/// A hostile image may ship a passwd file of any size.
const MAX_FILE: u64 = 1 << 20;

/// The numbers a process gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves `user` (empty, `name`, `uid`, either with `:group`) and further groups in `rootfs`.
///
/// # Errors
/// A sentence naming the user or group the image does not have.
pub fn resolve(rootfs: &Path, user: &str, further: &[String]) -> Result<Resolved, String> {
    let root = Root::open(rootfs).map_err(|e| {
        format!(
            "the root filesystem {} cannot be read: {e}",
            rootfs.display()
        )
    })?;
    resolve_below(&root, user, further)
}

/// The same below an open root.
///
/// # Errors
/// A sentence naming the user or group that is not there.
pub fn resolve_below(root: &Root, user: &str, further: &[String]) -> Result<Resolved, String> {
    resolve_in(
        &read(root, "/etc/passwd"),
        &read(root, "/etc/group"),
        user,
        further,
    )
}

fn read(root: &Root, path: &str) -> String {
    let mut text = Vec::new();
    // A FIFO or device in its place must not block us.
    let flags = OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK | OpenFlags::O_CLOEXEC;
    if let Ok(file) = root.open_subpath(path, flags)
        && file.metadata().is_ok_and(|m| m.is_file())
    {
        // An unreadable file is an image without users: numbers still work.
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Entry {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// `(name, gid, members)` of every group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// A group's number: the image's by its name, or the number itself.
fn gid_of(group: &str, which: &str) -> Result<u32, String> {
    let named = groups(group).find(|(name, ..)| *name == which);
    let gid = match named {
        Some((_, gid, _)) => Some(gid),
        None => which.parse().ok(),
    };
    // The last number stands for "no group" in the kernel's calls.
    gid.filter(|gid| *gid != u32::MAX)
        .ok_or_else(|| format!("the image has no group `{which}`"))
}

fn resolve_in(
    passwd: &str,
    group: &str,
    user: &str,
    further: &[String],
) -> Result<Resolved, String> {
    let (who, which) = match user.split_once(':') {
        Some((who, which)) => (who, Some(which)),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let number = who.parse::<u32>().ok().filter(|uid| *uid != u32::MAX);
    let entry = entries(passwd).find(|e| e.name == who || Some(e.uid) == number);
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(format!("the image has no user `{who}`")),
    };
    let gid = match which {
        None | Some("") => entry.as_ref().map_or(0, |e| e.gid),
        Some(which) => gid_of(group, which)?,
    };
    // Like Docker: the groups the user is listed in count only when no group was named.
    let mut extra = Vec::new();
    if let (Some(entry), None) = (&entry, which) {
        extra.extend(
            groups(group)
                .filter(|(.., members)| members.split(',').any(|m| m == entry.name))
                .map(|(_, gid, _)| gid),
        );
    }
    for which in further {
        let gid = gid_of(group, which)?;
        if !extra.contains(&gid) {
            extra.push(gid);
        }
    }
    let home = entry
        .map(|e| e.home)
        .filter(|h| h.starts_with('/'))
        .unwrap_or("/")
        .to_owned();
    Ok(Resolved {
        uid,
        gid,
        groups: extra,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:33::/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:www,other\nlog:x:7:other\n";

    #[test]
    fn users_are_resolved_against_the_image() {
        let table = [
            ("", Ok((0, 0, vec![], "/root"))),
            ("www", Ok((33, 33, vec![4], "/var/www"))),
            ("33", Ok((33, 33, vec![4], "/var/www"))),
            ("www:adm", Ok((33, 4, vec![], "/var/www"))),
            ("1000", Ok((1000, 0, vec![], "/"))),
            ("1000:2000", Ok((1000, 2000, vec![], "/"))),
            ("nobody", Err("the image has no user `nobody`")),
            ("www:staff", Err("the image has no group `staff`")),
            ("-1", Err("the image has no user `-1`")),
            ("4294967295", Err("the image has no user `4294967295`")),
            ("0:4294967295", Err("the image has no group `4294967295`")),
        ];
        for (user, want) in table {
            let got = resolve_in(PASSWD, GROUP, user, &[]);
            let want = want
                .map(
                    |(uid, gid, groups, home): (u32, u32, Vec<u32>, &str)| Resolved {
                        uid,
                        gid,
                        groups,
                        home: home.to_owned(),
                    },
                )
                .map_err(str::to_owned);
            assert_eq!(got, want, "{user}");
        }
    }

    #[test]
    fn further_groups_come_on_top() {
        let of = |user: &str, further: &[&str]| {
            let further: Vec<String> = further.iter().map(|g| (*g).to_owned()).collect();
            resolve_in(PASSWD, GROUP, user, &further).map(|resolved| resolved.groups)
        };
        assert_eq!(of("www", &["log", "4", "9000"]), Ok(vec![4, 7, 9000]));
        assert_eq!(of("www:www", &["adm"]), Ok(vec![4]));
        let unknown = of("www", &["staff"]);
        assert_eq!(unknown, Err("the image has no group `staff`".to_owned()));
    }
}
