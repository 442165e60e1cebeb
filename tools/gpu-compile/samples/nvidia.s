block.u 0 L3 [] -> {
      ur0     = s2r sr[0x25]                                  // delay=1 wr:0
      r9      = ffma.ftz r1 r2 r3                             // delay=4
} -> [1]
block 1 L0 [0, 3] -> {
      r4      = ld.global.a64.constant.b32 [r2..4+0x10]       // delay=1 wr:0
      r5      = mufu.ex2 r4                                   // delay=2 wt=000001 wr:1
      r6      = ffma.ftz r4 r5 r6                             // delay=4
      ur1     = r2ur r4                                       // delay=1 wr:1
      r7      = ld.local.b32 [rZ+0x8]                         // delay=1 wr:2
                st.local.b32 [rZ+0xc] r7                      // delay=1
                bar.sync                                      // delay=6
      r1      = mov 0x0                                       // delay=2
                nop L4                                        // delay=1
} -> [2]
block 2 L1 [1, 2] -> {
      r8..12  = ld.shared.strong.cta.b128 [r1+0x40]           // delay=1 wr:0
      r12     = shfl.idx r8 0x3 0x1f                          // delay=1 wr:0
      r13     = ffma.ftz r8 r12 r13                           // delay=1
      r14     = ffma.ftz r9 r12 r14                           // delay=1
@p1   r15     = ffma.ftz r10 r12 r15                          // delay=1
      r1      = iadd3 r1 0x10 rZ                              // delay=4
      p0      = isetp.lt.u32 r1 0x80                          // delay=13
@p0             bra pT L1                                     // delay=5
} -> [3, 2]
block 3 L2 [2] -> {
      r6      = fadd.ftz r6 r13                               // delay=4
      p2      = isetp.lt.u32 r4 c[0x1][0x18]                  // delay=13
@p2             bra pT L0                                     // delay=5
} -> [4, 1]
block 4 L5 [3] -> {
                exit                                          // delay=5
} -> []
