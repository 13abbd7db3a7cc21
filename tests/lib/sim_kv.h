/* A simulated transactional key-value store under the catalogue (catalog/kv.h): linked before the
 * library, so that LMDB's is not.
 *
 * It is what the engine may expect of LMDB and no more: a transaction sees one instant, one writes
 * at a time, a commit is durable when it returns, and a power cut during it leaves all of it or
 * nothing. A commit that fails leaves what was; one that fails with EIO may still be found after a
 * power cut, until another one succeeds. That LMDB itself keeps this on a real file system is not
 * shown by it. */
#ifndef GILD_TEST_SIM_KV_H
#define GILD_TEST_SIM_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An empty one; after sim_disk_make. Before it, nothing is there. */
void sim_kv_make(void);
/* A power cut: a commit under way is there or not, by chance. */
void sim_kv_cut(void);
uint64_t sim_kv_hash(void);

/* What is committed: records of a table, and whether a key is there. */
uint64_t sim_kv_count(unsigned table);
bool sim_kv_has(unsigned table, const void *key, size_t key_length);
void sim_kv_each(unsigned table, void (*visit)(void *context, const void *value, size_t length),
                 void *context);

#endif
