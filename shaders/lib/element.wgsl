// Packed 16-bit elements. A word holds element 2i in its low half and 2i + 1 in its high half.

fn decode1_f16(word: u32, half: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, half == 1u);
}

fn decode4_f16(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

// pack2x16float is free to return anything for a value that f16 cannot hold, and drivers do not
// all round to nearest: rounding is done here in integers, ties to even, overflow to infinity.
fn encode1_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    // normal: rebias the exponent by 112 and keep ten bits of the fraction
    let rebased = magnitude - 0x38000000u;
    let normal = (rebased + 0x0fffu + ((rebased >> 13u) & 1u)) >> 13u;
    // subnormal: the fraction with its hidden bit, shifted to units of 2^-24
    let shift = min(126u - (magnitude >> 23u), 31u);
    let fraction = (magnitude & 0x007fffffu) | 0x00800000u;
    let kept = fraction >> shift;
    let rest = fraction & ((1u << shift) - 1u);
    let middle = 1u << (shift - 1u);
    let up = u32(rest > middle || (rest == middle && (kept & 1u) == 1u));
    var h = select(normal, kept + up, magnitude < 0x38800000u);
    h = select(h, 0u, magnitude < 0x33000000u);
    h = select(h, 0x7c00u, magnitude >= 0x477ff000u);
    h = select(h, 0x7e00u, magnitude > 0x7f800000u);
    return sign | h;
}

fn encode4_f16(x: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(
        encode1_f16(x.x) | (encode1_f16(x.y) << 16u),
        encode1_f16(x.z) | (encode1_f16(x.w) << 16u),
    );
}

fn decode1_bf16(word: u32, half: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, half == 1u));
}

fn decode4_bf16(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(
        bitcast<f32>(words.x << 16u), bitcast<f32>(words.x & 0xffff0000u),
        bitcast<f32>(words.y << 16u), bitcast<f32>(words.y & 0xffff0000u),
    );
}

fn encode1_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    let nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return select(rounded, (bits >> 16u) | 0x40u, nan);
}

fn encode4_bf16(x: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(
        encode1_bf16(x.x) | (encode1_bf16(x.y) << 16u),
        encode1_bf16(x.z) | (encode1_bf16(x.w) << 16u),
    );
}
