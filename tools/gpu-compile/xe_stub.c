/* A pretend Intel "xe" kernel device: Mesa's ANV opens it and compiles, on a machine without such a card.
 *
 * Preloaded before the driver: it stands before libdrm's list of devices, open and ioctl, and answers as
 * an xe kernel driver would. XE_STUB names the card (tgl dg2 mtl lnl bmg ptl); XE_STUB_V=1 prints every
 * call.
 *
 * Written against the kernel's own headers (drm/xe_drm.h). Nothing runs: every submission "completes" at
 * once. The compiler goes by the PCI id; counts of cores and sizes of memory are only plausible. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xf86drm.h>
#include <drm/xe_drm.h>

/* A file that is there and that nobody else opens. ANV keeps 19 bytes of the name. */
#define NODE "/proc/execdomains"
static const struct card { const char *name; uint32_t id, dss, eu, vram, simd16; uint16_t major, minor; } cards[] = {
    {"tgl", 0x9a49, 6, 16, 0, 0, 12, 0},  {"dg2", 0x56a0, 32, 16, 1, 0, 12, 55},
    {"mtl", 0x7d55, 8, 16, 0, 0, 12, 71}, {"lnl", 0x64a0, 8, 8, 0, 1, 20, 4},
    {"bmg", 0xe20b, 20, 8, 1, 1, 20, 1},  {"ptl", 0xb080, 12, 8, 0, 1, 30, 0},
};
static struct card card;
static int stub_fd = -1;
/* offsets of buffers in the file that stands for memory, and their sizes by handle */
static uint64_t next_off = 1 << 20, sizes[1 << 16];
static uint32_t next_id = 1;

__attribute__((constructor)) static void init(void)
{
    const char *e = getenv("XE_STUB");
    /* an unknown name stays without an id, and the driver offers nothing */
    for (unsigned i = 0; e && i < sizeof cards / sizeof *cards; i++)
        if (!strcmp(e, cards[i].name)) card = cards[i];
}

/* Whether a descriptor is of the pretend device: duplicates of one file in memory. */
static int is_stub(int fd)
{
    struct stat a, b;
    return stub_fd >= 0 && fd >= 0 && !fstat(fd, &a) && !fstat(stub_fd, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

/* The device's file: sparse memory, so that every buffer can be mapped. */
static int open_node(void)
{
    if (stub_fd < 0) {
        stub_fd = memfd_create("xe_stub", MFD_CLOEXEC);
        if (ftruncate(stub_fd, 1ll << 42)) perror("xe_stub");
    }
    return dup(stub_fd);
}

#define OPEN(fn)                                                                   \
    int fn(const char *path, int flags, ...)                                       \
    {                                                                              \
        static int (*real)(const char *, int, ...);                                \
        if (!real) real = dlsym(RTLD_NEXT, #fn);                                   \
        va_list ap;                                                                \
        va_start(ap, flags);                                                       \
        int mode = va_arg(ap, int);                                                \
        va_end(ap);                                                                \
        if (!strcmp(path, NODE) && !(flags & O_CREAT)) return open_node();         \
        return real(path, flags, mode);                                            \
    }
OPEN(open)
OPEN(open64)

/* The one device of libdrm's list. */
static drmDevicePtr make(void)
{
    struct all { drmDevice d; char *nodes[DRM_NODE_MAX]; char name[64]; drmPciBusInfo bus; drmPciDeviceInfo info; };
    struct all *a = calloc(1, sizeof *a);
    a->d.nodes = a->nodes;
    strcpy(a->name, NODE);
    a->nodes[DRM_NODE_RENDER] = a->name;
    a->d.available_nodes = 1 << DRM_NODE_RENDER;
    a->d.bustype = DRM_BUS_PCI;
    a->bus.dev = 2;
    a->d.businfo.pci = &a->bus;
    a->info.vendor_id = 0x8086;
    a->info.device_id = card.id;
    a->d.deviceinfo.pci = &a->info;
    return &a->d;
}
int drmGetDevices2(uint32_t f, drmDevicePtr v[], int n) { (void)f; if (v && n > 0) v[0] = make(); return 1; }
int drmGetDevices(drmDevicePtr v[], int n) { return drmGetDevices2(0, v, n); }
int drmGetDevice2(int fd, uint32_t f, drmDevicePtr *d) { (void)fd; (void)f; *d = make(); return 0; }
int drmGetDevice(int fd, drmDevicePtr *d) { return drmGetDevice2(fd, 0, d); }
void drmFreeDevice(drmDevicePtr *d) { if (d && *d) { free(*d); *d = 0; } }
void drmFreeDevices(drmDevicePtr v[], int n) { for (int i = 0; i < n; i++) drmFreeDevice(&v[i]); }

/* What the driver asks of the device; a query without a size asks for the size. */
static int query(struct drm_xe_device_query *q)
{
    char buf[1024] = {0};
    uint32_t n = 0;
    switch (q->query) {
    case DRM_XE_DEVICE_QUERY_ENGINES: {
        struct drm_xe_query_engines *e = (void *)buf;
        const uint16_t c[] = {DRM_XE_ENGINE_CLASS_RENDER, DRM_XE_ENGINE_CLASS_COPY, DRM_XE_ENGINE_CLASS_COMPUTE};
        e->num_engines = 3;
        for (int i = 0; i < 3; i++) e->engines[i].instance.engine_class = c[i];
        n = sizeof *e + 3 * sizeof e->engines[0];
        break;
    }
    case DRM_XE_DEVICE_QUERY_MEM_REGIONS: {
        struct drm_xe_query_mem_regions *m = (void *)buf;
        m->num_mem_regions = 1 + card.vram;
        for (unsigned i = 0; i <= card.vram; i++) {
            struct drm_xe_mem_region *r = &m->mem_regions[i];
            r->mem_class = i ? DRM_XE_MEM_REGION_CLASS_VRAM : DRM_XE_MEM_REGION_CLASS_SYSMEM;
            r->instance = i;
            r->min_page_size = i ? 65536 : 4096;
            r->total_size = 16ull << 30;
            r->cpu_visible_size = i ? r->total_size : 0;
        }
        n = sizeof *m + m->num_mem_regions * sizeof m->mem_regions[0];
        break;
    }
    case DRM_XE_DEVICE_QUERY_CONFIG: {
        struct drm_xe_query_config *c = (void *)buf;
        c->num_params = 5;
        c->info[DRM_XE_QUERY_CONFIG_REV_AND_DEVICE_ID] = card.id | 8u << 16;
        c->info[DRM_XE_QUERY_CONFIG_FLAGS] = card.vram ? DRM_XE_QUERY_CONFIG_FLAG_HAS_VRAM : 0;
        c->info[DRM_XE_QUERY_CONFIG_MIN_ALIGNMENT] = card.vram ? 65536 : 4096;
        c->info[DRM_XE_QUERY_CONFIG_VA_BITS] = 48;
        c->info[DRM_XE_QUERY_CONFIG_MAX_EXEC_QUEUE_PRIORITY] = 1;
        n = sizeof *c + 5 * sizeof c->info[0];
        break;
    }
    case DRM_XE_DEVICE_QUERY_GT_LIST: {
        struct drm_xe_query_gt_list *g = (void *)buf;
        g->num_gt = 1;
        g->gt_list[0].reference_clock = 19200000;
        g->gt_list[0].near_mem_regions = card.vram ? 2 : 1;
        g->gt_list[0].far_mem_regions = card.vram ? 1 : 0;
        g->gt_list[0].ip_ver_major = card.major;
        g->gt_list[0].ip_ver_minor = card.minor;
        g->gt_list[0].ip_ver_rev = 4;
        n = sizeof *g + sizeof g->gt_list[0];
        break;
    }
    case DRM_XE_DEVICE_QUERY_GT_TOPOLOGY: {
        const uint16_t types[] = {DRM_XE_TOPO_DSS_GEOMETRY, DRM_XE_TOPO_DSS_COMPUTE, DRM_XE_TOPO_L3_BANK,
                                  card.simd16 ? DRM_XE_TOPO_SIMD16_EU_PER_DSS : DRM_XE_TOPO_EU_PER_DSS};
        for (int i = 0; i < 4; i++) {
            struct drm_xe_query_topology_mask t = {0, types[i], 8};
            uint32_t ones = i == 3 ? card.eu : i == 2 ? 8 : card.dss;
            uint64_t mask = ones >= 64 ? ~0ull : (1ull << ones) - 1;
            memcpy(buf + n, &t, sizeof t);
            memcpy(buf + n + sizeof t, &mask, 8);
            n += sizeof t + 8;
        }
        break;
    }
    case DRM_XE_DEVICE_QUERY_UC_FW_VERSION: {
        struct drm_xe_query_uc_fw_version *u = (void *)buf;
        u->branch_ver = 0; u->major_ver = 70; u->minor_ver = 44; u->patch_ver = 1;
        n = sizeof *u;
        break;
    }
    case DRM_XE_DEVICE_QUERY_ENGINE_CYCLES: {
        struct drm_xe_query_engine_cycles *u = (void *)buf;
        u->width = 36; u->engine_cycles = 1; u->cpu_timestamp = 1; u->cpu_delta = 1;
        n = sizeof *u;
        break;
    }
    case DRM_XE_DEVICE_QUERY_HWCONFIG:
        n = 0;
        q->size = 0;
        return 0;
    default: errno = EINVAL; return -1;
    }
    if (!q->size) { q->size = n; return 0; }
    if (q->size < n) { errno = EINVAL; return -1; }
    memcpy((void *)(uintptr_t)q->data, buf, n);
    return 0;
}

/* Every other call: handles count up, and whatever is waited for has happened. */
static int handle(unsigned long req, void *arg)
{
    unsigned nr = req & 0xff;
    if (nr >= DRM_COMMAND_BASE && nr < DRM_COMMAND_END) switch (nr - DRM_COMMAND_BASE) {
        case DRM_XE_DEVICE_QUERY: return query(arg);
        case DRM_XE_GEM_CREATE: {
            struct drm_xe_gem_create *c = arg;
            c->handle = next_id++;
            sizes[c->handle & 0xffff] = c->size;
            return 0;
        }
        case DRM_XE_GEM_MMAP_OFFSET: {
            struct drm_xe_gem_mmap_offset *m = arg;
            m->offset = next_off;
            next_off += (sizes[m->handle & 0xffff] + 0x1fffff) & ~0xfffffull;
            return 0;
        }
        case DRM_XE_VM_CREATE: ((struct drm_xe_vm_create *)arg)->vm_id = next_id++; return 0;
        case DRM_XE_EXEC_QUEUE_CREATE: ((struct drm_xe_exec_queue_create *)arg)->exec_queue_id = next_id++; return 0;
        case DRM_XE_EXEC_QUEUE_GET_PROPERTY: ((struct drm_xe_exec_queue_get_property *)arg)->value = 0; return 0;
        case DRM_XE_WAIT_USER_FENCE: return 0;
        case DRM_XE_OBSERVATION: errno = EINVAL; return -1;
        default: return 0;
    }
    switch (req) {
    case DRM_IOCTL_VERSION: {
        struct drm_version *v = arg;
        const char *s[] = {"xe", "20251127", "stub"};
        char *dst[] = {v->name, v->date, v->desc};
        __kernel_size_t *len[] = {&v->name_len, &v->date_len, &v->desc_len};
        v->version_major = 1; v->version_minor = 1;
        for (int i = 0; i < 3; i++) {
            size_t l = strlen(s[i]);
            if (dst[i] && *len[i]) memcpy(dst[i], s[i], l < *len[i] ? l : *len[i]);
            *len[i] = l;
        }
        return 0;
    }
    case DRM_IOCTL_GET_CAP: {
        struct drm_get_cap *c = arg;
        c->value = c->capability == DRM_CAP_SYNCOBJ || c->capability == DRM_CAP_SYNCOBJ_TIMELINE ||
                   c->capability == DRM_CAP_TIMESTAMP_MONOTONIC;
        if (c->capability == DRM_CAP_PRIME) c->value = DRM_PRIME_CAP_IMPORT | DRM_PRIME_CAP_EXPORT;
        return 0;
    }
    case DRM_IOCTL_SYNCOBJ_CREATE: ((struct drm_syncobj_create *)arg)->handle = next_id++; return 0;
    case DRM_IOCTL_SYNCOBJ_QUERY: {
        struct drm_syncobj_timeline_array *t = arg;
        for (unsigned i = 0; i < t->count_handles; i++) ((uint64_t *)(uintptr_t)t->points)[i] = ~0ull >> 1;
        return 0;
    }
    default: return 0; /* waits, signals, closes */
    }
}

int ioctl(int fd, unsigned long req, ...)
{
    static int (*real)(int, unsigned long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "ioctl");
    va_list ap;
    va_start(ap, req);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    if (((req >> 8) & 0xff) != 'd' || !is_stub(fd)) return real(fd, req, arg);
    int r = handle(req, arg);
    if (getenv("XE_STUB_V")) fprintf(stderr, "xe_stub: ioctl nr %#lx -> %d\n", req & 0xff, r);
    return r;
}
