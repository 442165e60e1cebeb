// Windows of neighborhood attention along one axis, inside a dilation group of `length` tokens.
// `rule`: 0 the window shifts inward at the borders, 1 it is cut off there, 2 it reaches past
// them, 3 causal. Without branches: Mesa's CPU driver compiles a kernel anew for each dispatch if a
// branch depends on nothing but the uniform buffer.

// First key that query u sees.
fn window_start(u: i32, length: i32, kernel: i32, stride: i32, rule: i32) -> i32 {
    let first = u / stride * stride;
    let causal = max(min(first + stride - 1, length - 1) - kernel + 1, 0);
    // an even window has its extra key on the left
    let still = first + stride / 2 - kernel / 2;
    let shifted = clamp(min(first + stride / 2, length - 1) - kernel / 2, 0, length - kernel);
    let bordered = select(select(still, max(still, 0), rule == 1), shifted, rule == 0);
    return select(bordered, causal, rule == 3);
}

// One past the last key that query u sees.
fn window_end(u: i32, length: i32, kernel: i32, stride: i32, rule: i32) -> i32 {
    let first = u / stride * stride;
    let still = first + stride / 2 - kernel / 2 + kernel;
    let shifted = clamp(min(first + stride / 2, length - 1) - kernel / 2, 0, length - kernel) + kernel;
    let bordered = select(select(still, min(still, length), rule == 1), shifted, rule == 0);
    return select(bordered, u + 1, rule == 3);
}
