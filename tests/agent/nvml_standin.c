/* A stand-in for libnvidia-ml.so.1: it answers what a script says, read anew whenever the script changed.
 *
 * The script ($NVML_STANDIN) has lines "key value". GPUs are gpu0, gpu1 ..; a GPU's keys are gpu0.uuid and so on, those
 * of the GPU instance with id 3 gpu0.gi3.memory. "gpu0.error.<function> <code>" makes one call fail for one GPU or
 * instance, "error.<function> <code>" for all. What is not scripted is NOT_SUPPORTED, as on a GPU that lacks it.
 * "epoch" stands for the driver's life: handles of an earlier epoch get "epoch.error" until nvmlInit was called again.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       NO_DATA = 21, UNKNOWN = 999 };
enum { GPUS = 16, SLOTS = 7, KEYS = 2048, TEXT = 128 };

typedef struct { int gpu, slot; } Handle; /* slot -1: the GPU itself, else a MIG device */
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Process;
typedef struct { unsigned version, sensor; int celsius; } Temperature;
typedef struct { unsigned version, supported; } GpmSupport;
typedef struct { int gpu, instance; double at; } GpmSample;
typedef struct { unsigned id; int result; double value; const char *names[3]; } GpmMetric;
typedef struct { unsigned version, count; GpmSample *older, *newer; GpmMetric metrics[]; } GpmQuery;

static struct { char key[TEXT], value[TEXT]; } script[KEYS];
static int keys, initialised;
static long epoch;
static struct timespec read_at;
static Handle handles[GPUS][SLOTS + 1];

static void read_script(void) {
  const char *path = getenv("NVML_STANDIN");
  struct stat now;
  if (!path || stat(path, &now) || (now.st_mtim.tv_sec == read_at.tv_sec && now.st_mtim.tv_nsec == read_at.tv_nsec)) return;
  FILE *file = fopen(path, "r");
  if (!file) return;
  read_at = now.st_mtim;
  for (keys = 0; keys < KEYS && fscanf(file, "%127s %127[^\n]", script[keys].key, script[keys].value) == 2;) keys++;
  fclose(file);
}

static const char *text(const char *key) {
  for (int i = 0; i < keys; i++)
    if (!strcmp(script[i].key, key)) return script[i].value;
  return NULL;
}

static long number(const char *key, long otherwise) {
  const char *value = text(key);
  return value ? strtol(value, NULL, 0) : otherwise;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int global_error(const char *function) {
  char key[TEXT];
  read_script();
  if (!initialised) return UNINITIALIZED;
  snprintf(key, sizeof key, "error.%s", function);
  return (int)number(key, OK);
}

/* The GPU instance of a MIG device, -1 of a whole GPU. "gpu0.mig0 3 MIG-<uuid>": in place 0 a device of instance 3. */
static int instance_of(const Handle *handle) {
  char key[TEXT];
  if (handle->slot < 0) return -1;
  snprintf(key, sizeof key, "gpu%d.mig%d", handle->gpu, handle->slot);
  return (int)number(key, -1);
}

static int prefix(int gpu, int instance, char *into, size_t size) {
  return instance < 0 ? snprintf(into, size, "gpu%d", gpu) : snprintf(into, size, "gpu%d.gi%d", gpu, instance);
}

static int error_of(int gpu, int instance, const char *function) {
  char key[TEXT], of[TEXT / 2];
  int error = global_error(function);
  if (error) return error;
  if (epoch != number("epoch", 0)) return (int)number("epoch.error", UNKNOWN);
  snprintf(key, sizeof key, "gpu%d.lost", gpu);
  if ((error = (int)number(key, OK))) return error;
  prefix(gpu, instance, of, sizeof of);
  snprintf(key, sizeof key, "%s.error.%s", of, function);
  return (int)number(key, OK);
}

/* The scripted value of a handle; NOT_SUPPORTED where there is none. */
static int value_of(const Handle *handle, const char *function, const char *name, const char **value) {
  char key[TEXT], of[TEXT / 2];
  int error = error_of(handle->gpu, instance_of(handle), function);
  if (error) return error;
  prefix(handle->gpu, instance_of(handle), of, sizeof of);
  snprintf(key, sizeof key, "%s.%s", of, name);
  return (*value = text(key)) ? OK : NOT_SUPPORTED;
}

static int uint_of(const Handle *handle, const char *function, const char *name, unsigned *into) {
  const char *value;
  int error = value_of(handle, function, name, &value);
  if (!error) *into = (unsigned)strtoul(value, NULL, 0);
  return error;
}

static int text_of(const Handle *handle, const char *function, const char *name, char *into, unsigned size) {
  const char *value;
  int error = value_of(handle, function, name, &value);
  if (!error) snprintf(into, size, "%s", value);
  return error;
}

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  read_script();
  int error = (int)number("init", OK);
  if (error) return error;
  initialised = 1;
  epoch = number("epoch", 0);
  return OK;
}

int nvmlShutdown(void) {
  if (!initialised) return UNINITIALIZED;
  initialised = 0;
  return OK;
}

const char *nvmlErrorString(int error) {
  (void)error;
  return "scripted";
}

int nvmlSystemGetDriverVersion(char *into, unsigned size) {
  int error = global_error("nvmlSystemGetDriverVersion");
  const char *version = text("driver");
  if (!error) snprintf(into, size, "%s", version ? version : "580.00");
  return error;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
  int error = global_error("nvmlDeviceGetCount_v2");
  *count = (unsigned)number("gpus", 0);
  return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **handle) {
  int error = error_of((int)index, -1, "nvmlDeviceGetHandleByIndex_v2");
  if (error || index >= GPUS) return error ? error : INVALID_ARGUMENT;
  *handle = &handles[index][SLOTS];
  **handle = (Handle){(int)index, -1};
  return OK;
}

int nvmlDeviceGetUUID(Handle *handle, char *into, unsigned size) {
  char key[TEXT];
  if (handle->slot < 0) return text_of(handle, "nvmlDeviceGetUUID", "uuid", into, size);
  snprintf(key, sizeof key, "gpu%d.mig%d", handle->gpu, handle->slot);
  const char *value = text(key);
  if (!value) return NOT_FOUND;
  snprintf(into, size, "%s", strchr(value, ' ') + 1);
  return OK;
}

int nvmlDeviceGetName(Handle *handle, char *into, unsigned size) {
  return text_of(handle, "nvmlDeviceGetName", "name", into, size);
}

int nvmlDeviceGetMinorNumber(Handle *handle, unsigned *minor) {
  return uint_of(handle, "nvmlDeviceGetMinorNumber", "minor", minor);
}

int nvmlDeviceGetUtilizationRates(Handle *handle, Utilization *into) {
  const char *value;
  int error = value_of(handle, "nvmlDeviceGetUtilizationRates", "utilization", &value);
  if (!error) sscanf(value, "%u %u", &into->gpu, &into->memory);
  return error;
}

/* "memory total reserved free used", bytes */
int nvmlDeviceGetMemoryInfo_v2(Handle *handle, Memory *into) {
  const char *value;
  int error = value_of(handle, "nvmlDeviceGetMemoryInfo_v2", "memory", &value);
  if (!error) sscanf(value, "%llu %llu %llu %llu", &into->total, &into->reserved, &into->free, &into->used);
  return error;
}

int nvmlDeviceGetPowerUsage(Handle *handle, unsigned *milliwatts) {
  return uint_of(handle, "nvmlDeviceGetPowerUsage", "power", milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(Handle *handle, unsigned *milliwatts) {
  return uint_of(handle, "nvmlDeviceGetEnforcedPowerLimit", "power_limit", milliwatts);
}

int nvmlDeviceGetTotalEnergyConsumption(Handle *handle, unsigned long long *millijoules) {
  const char *value;
  int error = value_of(handle, "nvmlDeviceGetTotalEnergyConsumption", "energy", &value);
  if (!error) *millijoules = strtoull(value, NULL, 0);
  return error;
}

int nvmlDeviceGetClockInfo(Handle *handle, unsigned type, unsigned *megahertz) {
  return uint_of(handle, "nvmlDeviceGetClockInfo", type == 1 ? "sm_clock" : "memory_clock", megahertz);
}

int nvmlDeviceGetTemperatureV(Handle *handle, Temperature *into) {
  unsigned celsius;
  int error = uint_of(handle, "nvmlDeviceGetTemperatureV", "temperature", &celsius);
  if (!error) into->celsius = (int)celsius;
  return error;
}

int nvmlDeviceGetCurrentClocksEventReasons(Handle *handle, unsigned long long *reasons) {
  const char *value;
  int error = value_of(handle, "nvmlDeviceGetCurrentClocksEventReasons", "reasons", &value);
  if (!error) *reasons = strtoull(value, NULL, 0);
  return error;
}

int nvmlDeviceGetTotalEccErrors(Handle *handle, unsigned type, unsigned counter, unsigned long long *count) {
  const char *value;
  (void)counter;
  int error = value_of(handle, "nvmlDeviceGetTotalEccErrors", type ? "ecc_uncorrected" : "ecc_corrected", &value);
  if (!error) *count = strtoull(value, NULL, 0);
  return error;
}

int nvmlDeviceGetPcieThroughput(Handle *handle, unsigned counter, unsigned *kilobytes) {
  usleep(20000); /* the window of the real one */
  return uint_of(handle, "nvmlDeviceGetPcieThroughput", counter ? "pcie_received" : "pcie_sent", kilobytes);
}

int nvmlDeviceGetComputeRunningProcesses_v3(Handle *handle, unsigned *count, Process *into) {
  unsigned processes;
  int error = uint_of(handle, "nvmlDeviceGetComputeRunningProcesses_v3", "processes", &processes);
  if (error) return error;
  if (processes > *count) {
    *count = processes;
    return INSUFFICIENT_SIZE;
  }
  for (unsigned i = 0; i < processes; i++) into[i] = (Process){1000 + i, 1 << 30, 0, 0};
  *count = processes;
  return OK;
}

int nvmlDeviceGetMigMode(Handle *handle, unsigned *current, unsigned *pending) {
  int error = uint_of(handle, "nvmlDeviceGetMigMode", "mig", current);
  *pending = *current;
  return error;
}

int nvmlDeviceGetMaxMigDeviceCount(Handle *handle, unsigned *count) {
  *count = SLOTS;
  return error_of(handle->gpu, -1, "nvmlDeviceGetMaxMigDeviceCount");
}

int nvmlDeviceGetMigDeviceHandleByIndex(Handle *handle, unsigned index, Handle **mig) {
  int error = error_of(handle->gpu, -1, "nvmlDeviceGetMigDeviceHandleByIndex");
  if (error) return error;
  *mig = &handles[handle->gpu][index];
  **mig = (Handle){handle->gpu, (int)index};
  return instance_of(*mig) < 0 ? NOT_FOUND : OK;
}

int nvmlDeviceGetGpuInstanceId(Handle *handle, unsigned *id) {
  *id = (unsigned)instance_of(handle);
  return OK;
}

int nvmlGpmQueryDeviceSupport(Handle *handle, GpmSupport *into) {
  const char *value;
  int error = error_of(handle->gpu, -1, "nvmlGpmQueryDeviceSupport");
  into->supported = !error && !value_of(handle, "nvmlGpmQueryDeviceSupport", "gpm", &value) && atoi(value);
  return error;
}

int nvmlGpmSampleAlloc(GpmSample **sample) {
  *sample = calloc(1, sizeof **sample);
  return global_error("nvmlGpmSampleAlloc");
}

int nvmlGpmSampleFree(GpmSample *sample) {
  free(sample);
  return OK;
}

static int take(int gpu, int instance, const char *function, GpmSample *sample) {
  int error = error_of(gpu, instance, function);
  if (!error) *sample = (GpmSample){gpu, instance, seconds()};
  return error;
}

int nvmlGpmSampleGet(Handle *handle, GpmSample *sample) {
  return take(handle->gpu, instance_of(handle), "nvmlGpmSampleGet", sample);
}

int nvmlGpmMigSampleGet(Handle *handle, unsigned instance, GpmSample *sample) {
  return take(handle->gpu, (int)instance, "nvmlGpmMigSampleGet", sample);
}

/* "gpu0.gpm.<id> value": what a measure reads. Samples of different GPUs, in the wrong order, or closer than
 * "gpm.apart_ms" have no figures. */
int nvmlGpmMetricsGet(GpmQuery *query) {
  char key[TEXT], of[TEXT / 2];
  int error = global_error("nvmlGpmMetricsGet");
  if (error) return error;
  const GpmSample *older = query->older, *newer = query->newer;
  if (query->version != 1 || older->gpu != newer->gpu || older->instance != newer->instance || older->at >= newer->at)
    return INVALID_ARGUMENT;
  int too_close = (newer->at - older->at) * 1e3 <= (double)number("gpm.apart_ms", 0);
  prefix(newer->gpu, newer->instance, of, sizeof of);
  for (unsigned i = 0; i < query->count; i++) {
    snprintf(key, sizeof key, "%s.gpm.%u", of, query->metrics[i].id);
    const char *value = text(key);
    snprintf(key, sizeof key, "%s.gpm.%u.error", of, query->metrics[i].id);
    int refused = (int)number(key, OK);
    query->metrics[i].result = too_close ? NO_DATA : refused ? refused : value ? OK : NOT_SUPPORTED;
    query->metrics[i].value = value ? strtod(value, NULL) : NAN;
  }
  return OK;
}
