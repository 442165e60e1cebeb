BB0:
	s_movk_i32 s1, 0x100                                        ; b0010100
	v_fma_f32 v9, v1, v2, v3                                    ; d6130009
	s_branch BB2                                                ; bfa00010
BB1:
	v_fmac_f32_e32 v4, s6, v5                                   ; 56080a06
	v_fma_mix_f32 v7, v4, v5, v6 op_sel_hi:[1,0,0]              ; cc200007
	v_exp_f32_e32 v4, v4                                        ; 7e084b04
	v_readlane_b32 s6, v4, 3                                    ; d7600006
	v_add_f32_dpp v4, v4, v4 row_shr:1 row_mask:0xf bank_mask:0xf ; 060808fa
	scratch_load_b32 v8, off, off offset:16                     ; dc510010
	buffer_load_b128 v[12:15], v1, s[8:11], 0 offen             ; e05c0000
	s_barrier                                                   ; bfbd0000
	s_mov_b32 s3, 0                                             ; be830080
BB3:
	ds_load_2addr_b64 v[16:19], v20 offset1:1                   ; d9dc0100
	s_waitcnt lgkmcnt(0)                                        ; bf89fc07
	v_dual_fmac_f32 v4, v16, v17 :: v_dual_fmac_f32 v5, v18, v19 ; c8002310
	v_fmac_f32_e32 v6, v16, v18                                 ; 560c2510
	v_fmaak_f32 v7, v17, v19, 0x3f800000                        ; 5a0e2711
	v_fmac_f32_e32 v8, v17, v18                                 ; 56102511
	v_readfirstlane_b32 s4, v8                                  ; 7e080508
	v_lshlrev_b32_e32 v20, 1, v20                               ; 30282881
	v_mov_b32_e32 v21, v20                                      ; 7e2a0314
	s_add_i32 s3, s3, 16                                        ; 81039003
	s_cmp_lt_u32 s3, 64                                         ; bf0ac003
	s_cbranch_scc1 BB3                                          ; bfa20000
BB4:
	v_mov_b32_e32 v4, v5                                        ; 7e080305
BB2:
	s_cmp_ge_u32 s1, s2                                         ; bf090201
	s_cbranch_scc0 BB1                                          ; bfa1ffc0
BB5:
	s_nop 0                                                     ; bf800000
	(then repeated 4 times)
	s_endpgm                                                    ; bfb00000
