//! Tables of nftables in a namespace: replaced at once, and held against what somebody may have made of them.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::namespace::Namespace;
use super::ruleset::{self, Table};

/// Why a table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program can't be run.
    #[error("nft can't be run in a network's namespace; is nftables installed?")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("nft refused table {family} {name}, and the rules before it stay; berth needs nftables 1.0 or newer: {said}", family = .table.family, name = .table.title())]
    Refused {
        /// Which table.
        table: Table,
        /// Its first words about it.
        said: String,
    },
}

/// The tables of one namespace as they were loaded. The kernel's own listing is kept beside each script: so a rule that somebody
/// took out is noticed, whatever the kernel makes of what it was given.
#[derive(Debug, Default)]
pub struct Tables(BTreeMap<Table, Loaded>);

#[derive(Debug)]
struct Loaded {
    script: String,
    listing: Option<String>,
}

impl Tables {
    /// The script that a table was loaded from.
    pub fn script(&self, table: Table) -> Option<&String> {
        self.0.get(&table).map(|loaded| &loaded.script)
    }

    /// Makes a table what the script says, whatever it is. Blocks.
    ///
    /// # Errors
    /// [`NftError`]; the old table is in force then.
    pub fn load(&mut self, namespace: &Namespace, table: Table, script: &str) -> Result<(), NftError> {
        // Of one that nothing is known of there is none as a rule, and then nothing has to be taken away first: the kernel waits for
        // that, which is two thirds of the time.
        let known = self.0.remove(&table).is_some();
        let (family, name) = (table.family, table.title());
        let body = script.strip_prefix(&ruleset::without(table)).unwrap_or(script);
        let first = || {
            nft(
                namespace,
                table,
                reading(),
                format!("create table {family} {name}\n{body}"),
            )
        };
        if known || body.is_empty() || first().is_err() {
            nft(namespace, table, reading(), script.to_owned())?;
        }
        let (script, listing) = (script.to_owned(), None);
        self.0.insert(table, Loaded { script, listing });
        Ok(())
    }

    /// Makes a table what the script says, unless it is so already; whether anything had to be done. Blocks.
    ///
    /// # Errors
    /// [`NftError`]; the old table is in force then.
    pub fn ensure(&mut self, namespace: &Namespace, table: Table, script: &str) -> Result<bool, NftError> {
        if let Some(loaded) = self.0.get(&table)
            && loaded.script == script
            && loaded.listing.is_some()
            && loaded.listing == list(namespace, table)?
        {
            return Ok(false);
        }
        self.load(namespace, table, script)?;
        let listing = list(namespace, table)?;
        if let Some(loaded) = self.0.get_mut(&table) {
            loaded.listing = listing;
        }
        Ok(true)
    }
}

/// Takes a table away; none is success. Blocks.
///
/// # Errors
/// [`NftError`].
pub fn remove(namespace: &Namespace, table: Table) -> Result<(), NftError> {
    nft(namespace, table, reading(), ruleset::without(table)).map(drop)
}

/// A table as the kernel has it, without its counters; none if there is no such table.
fn list(namespace: &Namespace, table: Table) -> Result<Option<String>, NftError> {
    let arguments = ["-s", "list", "table", table.family]
        .map(str::to_owned)
        .into_iter()
        .chain([table.title()]);
    match nft(namespace, table, arguments.collect(), String::new()) {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn nft(
    namespace: &Namespace,
    table: Table,
    arguments: Vec<String>,
    input: String,
) -> Result<String, NftError> {
    let ran = namespace.within(move || run(&arguments, &input));
    let out = ran.and_then(std::convert::identity).map_err(NftError::Run)?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let said = berth_common::id::clip(said.trim(), 300);
    Err(NftError::Refused { table, said })
}

/// Arguments with which it reads a script.
fn reading() -> Vec<String> {
    ["-f", "-"].map(str::to_owned).into()
}

fn run(arguments: &[String], input: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all before it says anything; one that ended early has said why.
    if let Some(mut pipe) = child.stdin.take() {
        let _ = pipe.write_all(input.as_bytes());
    }
    child.wait_with_output()
}
