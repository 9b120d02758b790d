"""What is asked of every model in the same way: conditions, controls, answers, and how much depends on the prompt.

One concept a file:

    conditions   what is drawn: no prompt, contour, box, dual box; on which mask and in which colours
    perturb      masks that are wrong on purpose: grown, shrunk, shifted, a neighbour's
    controls     the same questions with the prompt elsewhere, in other colours, on a wrong mask, or gone
    answers      the table of answers that everything is scored from, and its file
    asked        what was asked, as a file: stored answers are scored with it and without the patients
    table_file   how both lie on disk
    baselines    readers without an image, and readers of the masks, as tables of answers
    cohort       scans and questions of every split, in one fixed order
    pointing     a reader that can be looked into: where does it look, and what does it see there
    linear       its read-outs
    probes       its arms: asked everything, stored
    read_out     cross-attention from the question's names to the tokens: its arms
    read_out_model, read_out_reader    its network, and how it is asked
    reliance     how much of the answers depends on the prompt, in one number
    mask_quality how much a mask looks like one structure: what to abstain by
    real_field   a real CT on the cohort's grid, where its patients lie
    real_records what it can be asked in the cohort's words
    real_reading a model of the cohort reads the two real CTs
    vlm_reader   a vision–language model as a reader
    vlm_arms     its arms by name: what each trains
    vlm_lessons, vlm_run    what they learn from; trained, asked everything, stored
    real_cohort  a user's RadGenome-ChestCT or M3D as questions and pictures
    real_arms    models on it: profile paper
    vlm_tables   the papers' tables from what is stored
    chat_arms    MedVista3D's language model and CT-CHAT's kind on the aligned encoders: trained, asked, stored
    chat_records, chat_protocol    the four tasks that they are asked, and what is fixed for them
    chat_tables  Table 3 from what is stored
    uvlm         U-VLM's arms: three stages that hand on one encoder
    uvlm_arms, uvlm_protocol, uvlm_said, uvlm_tables    by name, what is fixed for them, what they said, and tables
    uvlm_real    the same on a user's CT-RATE or AbdomenAtlas: profile paper
    uvlm_real_options, uvlm_real_cost    what is trained there, and what that costs
    uvlm_real_listed, uvlm_real_data, uvlm_real_scores    which scans there are, made ready, and what is said of them
    prepared_arms      the volumes of an arm of profile paper, made ready ahead of it by many workers
    kept_answers       of a long asking, so that a killed run goes on from there
    many_volumes       rendering with one process beside two
    predicted_masks    regions that U-VLM's first stage finds
    predicted_prompts  prompts drawn on them: asked, stored
    vlm_contrasts the protocol's contrasts on it
    scores       accuracy with intervals, paired differences, calibration: tables from tables of answers
"""
