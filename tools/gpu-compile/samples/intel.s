(W)     mov (8)                   r107          r0.1<0>
        mad (8)                   r9:f          r9:f              r8:f              r7<1>:f {F@1}

L0:
        send.ugm (8)              r27     r21    null:0  0x02000000  0x62100500   {$4}  // wr:1+0, rd:1; load.ugm.d32.a32.bti[2]
(W)     sync.nop (1)                            null                              {$4.dst}
        cmp (8)        (ge)f0.0   null          r102              r31             {I@5}
(f0.0)  break (8)                             jip:L4              uip:L4
(W)     send.ugm (1)              r31     r32    null:0  a0.4        0x4210C500   {ExBSO,$13}  // wr:1+a0.4, rd:1; load.ugm.d32x8t.a32.ss[a0.4]
        mad (8)                   r20:f         r20:f             r26:f             r111<1>:f {@2,$1.dst}
        mad (8)                   r21:d         r21:d             r26:d             r111<1>:uw
        math.exp (8)              r22:f         r20:f             null
        mov (8)                   r24           r[a0.0 + 160]<1>                  {A@1}
(W)     mov (1)                   r23           r[a0.0 + 160]<0>                  {A@1}
(W&f0.0.any8h) send.gtwy (8)      null    r14    null:0  0x00000000  0x02000004   {$2}  // wr:1+0, rd:0; barrier_msg (8)
        mov (8)                   r127          0x00000000:ud

L1:
        cmp (8)        (ge)f0.0   null          r127              0x00000400      {I@2}
(f0.0)  break (8)                             jip:L2              uip:L2
        send.slm (8)              r40     r30    null:0  0x00000000  0x02103500   {$1}  // wr:1+0, rd:4; load.slm.d32x4.a32
        mad (8)                   r50:f         r50:f             r40<0>:f          r41<1>:f {F@1}
        mad (8)                   r51:f         r51:f             r42<0>:f          r43<1>:f {F@1}
        add (8)                   r127:d        r127:d            64:d            {Compacted,I@1}
        add (8)                   r30:d         r30:d             r29:d

L2:
        while (8)                             L1
        add (8)                   r102:d        r102:d            1:d             {I@1}

L4:
        while (8)                             L0
        send.gtwy (8)             null    r126   null:0  0x00000000  0x02000010   {EOT}  // wr:1+0, rd:0; open (8)
