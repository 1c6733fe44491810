//! A layer that an instance reads while it still arrives. Its headers come first and give the whole
//! tree; a file system in user space shows it, and waits in a read for the bytes that are not here.
//! Owns that file system and what it shows. Where the bytes come from is another's.

mod fs;
mod holes;
mod outline;

#[cfg(test)]
mod tests;
