//! Kernel settings of a network that was there before its container. Set from outside: whoever is
//! root in the container need not be in its network.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Sets `sysctls` (names below `net.`) in the network at `netns`.
///
/// # Errors
/// A sentence naming the setting the kernel refused.
pub fn set(netns: &Path, sysctls: &[(String, String)]) -> Result<(), String> {
    let network: Vec<_> = sysctls
        .iter()
        .filter(|(name, _)| name.starts_with("net."))
        .collect();
    if network.is_empty() {
        return Ok(());
    }
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let (own, theirs) = (open(Path::new("/proc/self/ns/net"))?, open(netns)?);
    // This process has one thread; nothing else sees it in between.
    enter(&theirs).map_err(|e| format!("{}: {e}", netns.display()))?;
    let written = network.into_iter().try_for_each(|(name, value)| {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(path, value).map_err(|e| format!("{name} does not take `{value}`: {e}"))
    });
    enter(&own).map_err(|e| format!("the way back from {}: {e}", netns.display()))?;
    written
}

fn enter(netns: &File) -> io::Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}
