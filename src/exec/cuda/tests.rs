//! What becomes of a device's errors. That launches are right is shown by the golden models on the emulator.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Mutex;

use super::device::{Emulator, GraphId, Order, Shape};
use super::*;
use crate::model::ops::{Batch, Ops, Role};
use crate::model::weights::{Dtype, Tensor};

/// The kernels on the CPU. `None` where their library is missing, which is a failure in CI.
pub fn emulator(order: Order) -> Option<Emulator> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kernels/libgarrick_kernels_shim.so");
    if !library.exists() {
        let message = format!("{} is missing: run scripts/check-kernels.sh shim", library.display());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
        eprintln!("skipped: {message}");
        return None;
    }
    // SAFETY: built from this tree by the script.
    Some(unsafe { Emulator::open(&library, order) }.unwrap())
}

/// What a launch comes to that fails, or panics.
pub type Fault = fn() -> DeviceError;

/// The emulator's memory, and kernels that do nothing but count, until one fails.
pub struct Faulty {
    pub memory: Emulator,
    pub launched: Mutex<Vec<&'static str>>,
    /// What a later launch comes to, after so many good ones.
    pub later: Mutex<Option<(usize, Fault)>>,
    /// The error of the next launch.
    launch: Mutex<Option<DeviceError>>,
    /// The error of the next allocation.
    allocation: Mutex<Option<DeviceError>>,
}

impl Faulty {
    pub fn new() -> Faulty {
        let (launched, later, launch, allocation) = Default::default();
        Faulty { memory: Emulator::bare(), launched, later, launch, allocation }
    }

    fn launched(&self) -> usize {
        self.launched.lock().unwrap().len()
    }
}

// What takes addresses is the emulator's, with its contract.
impl Device for Faulty {
    fn name(&self) -> String {
        "faulty".into()
    }

    fn free_bytes(&self) -> Result<usize, DeviceError> {
        self.memory.free_bytes()
    }

    fn beside(&self) -> Result<Arc<dyn Device>, DeviceError> {
        Err(DeviceError::Failed("there is one lane".into()))
    }

    fn allocations(&self) -> u64 {
        0
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.allocation.lock().unwrap().take().map_or_else(|| self.memory.allocate(bytes), Err)
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: the caller's promise.
        unsafe { self.memory.free(address) };
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.upload(to, from) }
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.download(to, from) }
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.memory.clear(to, bytes) }
    }

    unsafe fn launch(&self, kernel: &'static str, _: Shape, _: &mut [*mut c_void]) -> Result<(), DeviceError> {
        if let Some(error) = self.launch.lock().unwrap().take() {
            return Err(error);
        }
        let later = self.later.lock().unwrap().take();
        match later {
            Some((0, fault)) => return Err(fault()),
            later => *self.later.lock().unwrap() = later.map(|(left, fault)| (left - 1, fault)),
        }
        self.launched.lock().unwrap().push(kernel);
        Ok(())
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.memory.finish()
    }

    fn begin_capture(&self) -> Result<(), DeviceError> {
        Err(DeviceError::Failed("nothing is captured".into()))
    }

    fn end_capture(&self) -> Result<GraphId, DeviceError> {
        unreachable!("no capture begins")
    }

    unsafe fn launch_graph(&self, _: GraphId) -> Result<(), DeviceError> {
        unreachable!("there is no graph")
    }

    unsafe fn free_graph(&self, _: GraphId) {
        unreachable!("there is no graph")
    }
}

fn matrix(ops: &mut CudaOps) -> CudaMatrix {
    let bytes: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let all = 0..bytes.len();
    ops.load_matrix(Role::Projection, &[Tensor::new("w".into(), Dtype::F32, vec![3, 2], Arc::new(bytes), all)])
}

/// Embeds the token 0, twice.
fn step(ops: &mut CudaOps, table: &CudaMatrix) -> Result<usize, DeviceError> {
    let (mut step, mut out) = (ops.new_step(), ops.new_rows());
    ops.prepare(&Batch { tokens: vec![0, 0], ..Batch::default() }, &mut step);
    ops.embed(&step, table, 1.0, &mut out);
    let other = ops.new_rows();
    ops.add_scaled(&mut out, &other, 1.0);
    ops.read(&out).map(<[f32]>::len)
}

#[test]
fn what_no_kernel_can_count_is_done_in_parts() {
    let parts = |values| super::slices(values).collect::<Vec<_>>();
    assert_eq!(parts(0), []);
    assert_eq!(parts(777), [(0, 777)]);
    assert_eq!(parts(1 << 30), [(0, 1 << 30)]);
    // 8192 rows of a vocabulary of 262,144.
    assert_eq!(parts(1 << 31), [(0, 1 << 30), (1 << 30, 1 << 30)]);
    assert_eq!(parts((1 << 30) + 5), [(0, 1 << 30), (1 << 30, 5)]);
}

#[test]
fn the_first_error_stops_the_step_and_a_later_step_runs() {
    let device = Arc::new(Faulty::new());
    let mut ops = CudaOps::new(device.clone());
    let table = matrix(&mut ops);
    let failed = DeviceError::Failed("the first".into());
    *device.launch.lock().unwrap() = Some(failed.clone());
    // What follows the error is not run: the sum's rows have no shape and would panic.
    assert_eq!(step(&mut ops, &table), Err(failed));
    assert_eq!(device.launched(), 0);
    ops.run(|ops| {
        let kernel = Launch::new("any", [1, 1, 1]);
        // SAFETY: this device's kernels do nothing.
        unsafe { ops.start(kernel) }
    });
    assert_eq!((ops.finish(), device.launched()), (Ok(()), 1));
}

#[test]
fn a_lost_device_stays_lost() {
    let device = Arc::new(Faulty::new());
    let mut ops = CudaOps::new(device.clone());
    let table = matrix(&mut ops);
    let lost = DeviceError::Lost("fell off the bus".into());
    *device.launch.lock().unwrap() = Some(lost.clone());
    for _ in 0..3 {
        assert_eq!(step(&mut ops, &table), Err(lost.clone()));
    }
    assert_eq!(device.launched(), 0);
}

#[test]
fn what_fails_in_loading_comes_out_before_the_first_step_and_nothing_is_left() {
    let device = Arc::new(Faulty::new());
    let mut ops = CudaOps::new(device.clone());
    let first = matrix(&mut ops);
    let full = DeviceError::Failed("no 1 MiB left".into());
    *device.allocation.lock().unwrap() = Some(full.clone());
    let (second, third) = (matrix(&mut ops), matrix(&mut ops));
    assert_eq!([&second, &third].map(|matrix| matrix.sections()[0].address()), [0, 0]);
    assert_eq!(ops.free_bytes(), Err(full));
    assert!(first.sections()[0].address() != 0);
    drop((first, second, third, ops));
    assert_eq!(device.memory.num_allocations(), 0, "memory that nobody gave back");
}

#[test]
fn an_empty_grid_starts_nothing() {
    let device = Faulty::new();
    for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
        // SAFETY: nothing is started.
        unsafe { Launch::new("any", grid).start(&device) }.unwrap();
    }
    assert_eq!(device.launched(), 0);
}

#[test]
fn a_matrix_of_parts_in_several_formats_is_bfloat16_row_by_row() {
    let device = Arc::new(Faulty::new());
    let mut ops = CudaOps::new(device.clone());
    let values = [1.0f32, -2.5, 3.0, 0.1];
    let plain: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    // At an odd place in its file.
    let mut short = vec![0u8];
    short.extend(values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()));
    let tensor = |dtype, bytes: Vec<u8>, start: usize| {
        let range = start..bytes.len();
        Tensor::new("w".into(), dtype, vec![2, 2], Arc::new(bytes), range)
    };
    let matrix = ops.load_matrix(Role::Projection, &[tensor(Dtype::Bf16, short, 1), tensor(Dtype::F32, plain, 0)]);
    assert_eq!((matrix.rows, matrix.cols), (4, 2));
    let mut found = [half::bf16::ZERO; 8];
    // SAFETY: eight values, as its shape says.
    unsafe { device.download(bytemuck::cast_slice_mut(&mut found), matrix.sections()[0].address()).unwrap() };
    let expected = values.map(half::bf16::from_f32);
    assert_eq!((&found[..4], &found[4..]), (&expected[..], &expected[..]));
}
