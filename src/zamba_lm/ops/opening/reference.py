"""A step's beginning as its definition."""


def opening_reference(ids_S, embedding_VD, table_nM, slots_S, ages_S, grows_S):
    x_SD, pages_SM, past_S = embedding_VD[ids_S.clamp_min(0)], table_nM[slots_S.long()], ages_S.clone()
    ages_S += grows_S
    return x_SD, pages_SM, past_S
