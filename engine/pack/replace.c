/* The last steps of every rewrite of a pack, be it a repair or a collection:
 *
 *   read    the new file, synced, whole and deep: every check, and each block's SHA-256
 *   rename  NUMBER.pack.new over NUMBER.pack, folder synced
 *   swap    in the set; readers may still be in the old file, which the caller lets go
 *
 * Invariant: what is good is never replaced by less. A crash leaves the old file or the new one,
 * whole, under the name; which of them is said by nothing but the file itself.
 *
 * Blocking, one thread; readers go on. Failure modes: before the rename the new file is unlinked
 * (writer_destroy) and the old one stays; if the folder can not be synced after it, the open store
 * goes on with the old file, which has no name any more, and the next open meets either. */
#include "pack/replace.h"

#include <errno.h>

struct proof {
    const struct pack_replacing *how;
    const struct pack *made;
    bool worse;
};

static void prove(void *context, const struct gild_pack_fault *fault) {
    struct proof *proof = context;
    if (fault->groups != 1 || !proof->how->allowed ||
        !proof->how->allowed(proof->how->context, proof->made, fault->first_group))
        proof->worse = true;
}

static int prove_pace(void *context, uint64_t bytes) {
    const struct pack_replacing *how = ((struct proof *)context)->how;
    return how->pace ? how->pace(how->context, bytes) : 0;
}

int pack_replace(struct gild_packs *packs, uint32_t pack_id, struct pack_writer *writer,
                 const struct pack_replacing *how, struct gild_pack_old **old) {
    char path[PATH_MAX];
    struct gild_error ignored;
    struct pack *made;
    set_path(packs, pack_id, false, path);
    int err = pack_open(&made, path, packs->store_id, pack_id, &ignored);
    if (err)
        return err;
    struct proof proof = {how, made, false};
    const struct gild_pack_look look = {
        .deep = true, .found = prove, .pace = prove_pace, .context = &proof};
    err = pack_check(packs, made, &look);
    err = err && err != -EUCLEAN ? err : proof.worse ? -EIO : 0;
    if (!err && !how->keep_lost)
        err = pack_mark_lost(made, how->lost, how->lost_count);
    if (!err && how->ready)
        err = how->ready(how->context);
    if (!err)
        err = writer_publish(writer);
    if (!err)
        err = set_sync_folder(packs);
    if (err) {
        pack_close(made);
        return err < 0 ? err : -ECANCELED;
    }
    *old = (struct gild_pack_old *)set_swap(packs, made, how->keep_lost);
    return 0;
}
