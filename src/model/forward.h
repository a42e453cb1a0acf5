/* forward.h - the forward pass of one step, run by every thread of every rank. */
#ifndef MODEL_FORWARD_H
#define MODEL_FORWARD_H

#include "model/model.h"

/* Returns nonzero once the team has failed. */
int forward(struct lane *lane, const struct model *m, struct shard *s, const struct batch *batch);

#endif
