/* Ways to damage the rig's store (repair_rig.h), each with what is then lost. */
#ifndef GILD_TEST_REPAIR_HARM_H
#define GILD_TEST_REPAIR_HARM_H

#include "repair_rig.h"

typedef void harm(const char *directory, struct rig_expected *expected);

harm harm_rot_tail_header; /* a batch above the checkpoint that cannot be told any more */
harm harm_rot_leaf;        /* of a desktop's map */
harm harm_remove_segment;  /* a full one of guests' writes */
harm harm_garble_segment;  /* it is something else */
harm harm_cut_segment;
harm harm_rot_segment_header;
harm harm_rot_map_leaf; /* of an image's map */
harm harm_remove_packs; /* all of them */
harm harm_rot_pack;     /* the header of one, and a group */
harm harm_rot_superblock;
harm harm_remove_catalogue;
harm harm_lose_transactions; /* and the journal has lost some of the last ones */

/* A block of a desktop that the tail has, and a later batch of the same stream behind it. */
uint64_t harm_tail_block(const char *directory, unsigned desktop, struct rig_spot *spot,
                         struct rig_spot *next);
void harm_lose_range(struct rig_expected *expected, unsigned desktop, uint64_t first,
                     uint64_t count);
/* A segment that a desktop has something in. */
uint64_t harm_serial_of(const char *directory, unsigned desktop);

#endif
