//! Whatever a registry calls a layer, scanning it ends in a verdict, within bounds.
#![no_main]

use berth_agent::image::scan::{ScanLimits, scan_layer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = ScanLimits {
        max_uncompressed: 8 << 20,
        max_ratio: 100,
        ratio_from: 1 << 20,
        max_entries: 1_000,
        max_header: 64 << 10,
    };
    if let Ok(scan) = scan_layer(data, &limits) {
        assert!(scan.uncompressed <= limits.max_uncompressed);
    }
});
