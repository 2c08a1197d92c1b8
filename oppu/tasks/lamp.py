"""The seven LaMP tasks of the paper: prompts of appendices I and J, label sets, Table 4.

Appendix I gives the place of retrieved items in a prompt, not their wording; here an item reads as the question does,
with its answer filled in. Values beside each other, one per task; a new task is a new value.
"""

from oppu.tasks.task import HistoryForm, Hyperparameters, Task

_CATEGORIES = (
    "travel", "education", "parents", "style & beauty", "entertainment", "food & drink", "science & technology",
    "business", "sports", "healthy living", "women", "politics", "crime", "culture & arts", "religion",
)  # fmt: skip
_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic",
    "psychology", "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
)  # fmt: skip

_NEWS_PROMPT = (
    "Which category does this article relate to among the following categories? "
    "Just answer with the category name without further explanation. "
    f"categories: [{', '.join(_CATEGORIES)}]\narticle: {{text}} category:"
)
_MOVIE_PROMPT = (
    "Which tag does this movie relate to among the following tags? "
    "Just answer with the tag name without further explanation. "
    f"tags: [{', '.join(_TAGS)}]\ndescription: {{description}} tag:"
)
_RATING_PROMPT = (
    "What is the score of the following review on a scale of 1 to 5? "
    "just answer with 1, 2, 3, 4, or 5 without further explanation.\nreview: {text} score:"
)
_HEADLINE_PROMPT = "Generate a headline for the following article.\narticle: {text} headline:"
_TITLE_PROMPT = "Generate a title for the following abstract of a paper.\nabstract: {abstract} title:"

CITATION = Task(
    name="citation",
    title="Personalized citation identification",
    lamp_id="LaMP_1",
    kind="label",
    labels=("[1]", "[2]"),
    prompt=(
        "Identify the most relevant reference for the listed publication by the researcher. "
        "Select the reference paper that is most closely related to the researcher's work. "
        "Please respond with only the number that corresponds to the reference.\n"
        "paper title: {title}\nreference: [1] - {option1} [2] - {option2}\nanswer:"
    ),
    query_pattern=(
        # each part ends where the next one begins first, so that no text takes more than linear time
        r'^(?:(?!title ").)*title "(?P<title>(?:(?!", which reference is related\?).)*)", which reference is related\?'
        r'(?:(?!\[1\]: ").)*\[1\]: "(?P<option1>(?:(?!" \[2\]: ").)*)" \[2\]: "(?P<option2>.*)"\s*$'
    ),
    history=(
        HistoryForm(
            prompt="paper title: {title}\nreference:",
            answer="{citation}",
            shown="paper title: {title}\nreference: {citation}",
        ),
        HistoryForm(prompt="", answer="paper title: {title}", shown="paper title: {title}"),
    ),
    search_fields=("title", "abstract"),
    profile_prompt=(
        "Write a summary, in English, of the research interests and topics of a researcher who has published the "
        "following papers. Only generate the summary, no other text. User History: {history} Answer:"
    ),
    paper=Hyperparameters(epochs=3, batch_size=16),
)

NEWS_CATEGORIZE = Task(
    name="news_categorize",
    title="Personalized news categorization",
    lamp_id="LaMP_2N",
    kind="label",
    labels=_CATEGORIES,
    prompt=_NEWS_PROMPT,
    query_pattern=r"\] article: (?P<text>.*)$",
    history=(HistoryForm(prompt=_NEWS_PROMPT, answer="{category}", shown="article: {text} category: {category}"),),
    search_fields=("text",),
    profile_prompt=(
        "Look at the following past articles this journalist has written and determine the most popular category they "
        "write in. Answer in the following form: most popular category: <category>. User History: {history} Answer:"
    ),
    profile_count="most popular category: {most_common}",
    paper=Hyperparameters(epochs=3, batch_size=16),
)

MOVIE_TAGGING = Task(
    name="movie_tagging",
    title="Personalized movie tagging",
    lamp_id="LaMP_2M",
    kind="label",
    labels=_TAGS,
    prompt=_MOVIE_PROMPT,
    query_pattern=r"\] description: (?P<description>.*)$",
    history=(HistoryForm(prompt=_MOVIE_PROMPT, answer="{tag}", shown="description: {description} tag: {tag}"),),
    search_fields=("description",),
    profile_prompt=(
        "Look at the following past movies this user has watched and determine the most popular tag they labeled. "
        "Answer in the following form: most popular tag: <tag>. User History: {history} Answer:"
    ),
    profile_count="most popular tag: {most_common}",
    paper=Hyperparameters(epochs=3, batch_size=4),
)

PRODUCT_RATING = Task(
    name="product_rating",
    title="Personalized product rating",
    lamp_id="LaMP_3",
    kind="rating",
    labels=("1", "2", "3", "4", "5"),
    prompt=_RATING_PROMPT,
    query_pattern=r"explanation\. review: (?P<text>.*)$",
    history=(HistoryForm(prompt=_RATING_PROMPT, answer="{score}", shown="review: {text} score: {score}"),),
    search_fields=("text",),
    profile_prompt=(
        "Based on this user's past reviews, what are the most common scores they give for positive and negative "
        "reviews? Answer in the following form: most common positive score: <most common positive score>, most common "
        "negative score: <most common negative score>. User History: {history} Answer:"
    ),
    profile_count=(
        "most common positive score: {most_common_positive}, most common negative score: {most_common_negative}"
    ),
    paper=Hyperparameters(epochs=3, batch_size=3),
)

NEWS_HEADLINE = Task(
    name="news_headline",
    title="Personalized news headline generation",
    lamp_id="LaMP_4",
    kind="text",
    prompt=_HEADLINE_PROMPT,
    query_pattern=r"^Generate a headline for the following article: (?P<text>.*)$",
    history=(HistoryForm(prompt=_HEADLINE_PROMPT, answer="{title}", shown="article: {text} headline: {title}"),),
    search_fields=("text",),
    profile_prompt=(
        "Given this author's previous articles, try to describe a template for their headlines. I want to be able to "
        "accurately predict the headline gives one of their articles. Be specific about their style and wording, "
        "don't tell me anything generic. User History: {history} Answer:"
    ),
    paper=Hyperparameters(epochs=2, weight_decay=1e-1, batch_size=8),
)

SCHOLARLY_TITLE = Task(
    name="scholarly_title",
    title="Personalized scholarly title generation",
    lamp_id="LaMP_5",
    kind="text",
    prompt=_TITLE_PROMPT,
    query_pattern=r"^Generate a title for the following abstract of a paper: (?P<abstract>.*)$",
    history=(HistoryForm(prompt=_TITLE_PROMPT, answer="{title}", shown="abstract: {abstract} title: {title}"),),
    search_fields=("abstract",),
    profile_prompt=(
        "Given this author's previous publications, try to describe a template for their titles. I want to be able to "
        "accurately predict the title of one of the papers from the abstract. Only generate the template description, "
        "nothing else. User History: {history} Answer:"
    ),
    paper=Hyperparameters(epochs=2, weight_decay=1e-1, batch_size=4),
)

TWEET_PARAPHRASE = Task(
    name="tweet_paraphrase",
    title="Personalized tweet paraphrasing",
    lamp_id="LaMP_7",
    kind="text",
    prompt=(
        "Following the given pattern, paraphrase the following text into tweet without any explanation before or "
        "after it.\ntext: {text} tweet:"
    ),
    query_pattern=r"^Paraphrase the following tweet without any explanation before or after it: (?P<text>.*)$",
    history=(HistoryForm(prompt="", answer="{text}", shown="tweet: {text}"),),
    search_fields=("text",),
    profile_prompt=(
        "Given this person's previous tweets, try to describe a template for their tweets. I want to take a generic "
        "sentence and rephrase it to sound like one of their tweets, with the same "
        "style/punctuation/capitalization/wording/tone/etc. as them. Only give me the template description, nothing "
        "else. User History: {history} Answer:"
    ),
    paper=Hyperparameters(epochs=2, weight_decay=1e-1, batch_size=8),
)

LAMP_TASKS = (
    CITATION,
    NEWS_CATEGORIZE,
    MOVIE_TAGGING,
    PRODUCT_RATING,
    NEWS_HEADLINE,
    SCHOLARLY_TITLE,
    TWEET_PARAPHRASE,
)
