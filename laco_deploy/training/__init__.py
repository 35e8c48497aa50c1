"""Training of LaCo vision-language models: data, stages and recipes."""
